/* Upwind Burgers in two dimensions behind a pipe: a whole simulator of somebody else.
 * Usage: burgers CELLS LENGTH DT. Native part: one number, the steps made so far.
 * Operations come in the order of solvers/burgers.py, so that results are equal to the bit. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void advance(const double *u, double *next, int n, double nu, double dx, double dt)
{
    for (int c = 0; c < 2; c++)
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) {
                const double *field = u + c * n * n;
                double here = field[i * n + j], change[2];
                double around[2][2] = {
                    {field[(i + n - 1) % n * n + j], field[(i + 1) % n * n + j]},
                    {field[i * n + (j + n - 1) % n], field[i * n + (j + 1) % n]}};
                for (int axis = 0; axis < 2; axis++) {
                    double behind = here - around[axis][0], ahead = around[axis][1] - here;
                    double wind = u[axis * n * n + i * n + j] * (0.5 * dt / dx);
                    double bend = (ahead - behind) * (fabs(wind) + nu * (dt / (dx * dx)));
                    change[axis] = bend - (ahead + behind) * wind;
                }
                next[c * n * n + i * n + j] = here + (change[0] + change[1]);
            }
}

static double *read_doubles(int64_t count)
{
    double *values = malloc(8 * count + 8);
    if (fread(values, 8, count, stdin) != (size_t)count)
        exit(1);
    return values;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int n = atoi(argv[1]);
    double dx = atof(argv[2]) / n, dt = atof(argv[3]);
    int64_t header[4];
    while (fread(header, 8, 4, stdin) == 4) {
        int64_t b = header[0], width = header[1];
        double *fields = read_doubles(b * width), *nu = read_doubles(b);
        double *native = header[2] ? read_doubles(b) : calloc(b + 1, 8);
        double *force = header[3] ? read_doubles(b * width) : calloc(b * width + 1, 8);
        double *next = malloc(8 * b * width + 8);
        for (int64_t row = 0; row < b; row++) {
            advance(fields + row * width, next + row * width, n, nu[row], dx, dt);
            for (int64_t k = row * width; k < (row + 1) * width; k++)
                next[k] += dt * force[k];
            native[row] += 1;
        }
        header[2] = 1;
        header[3] = 0;
        fwrite(header, 8, 4, stdout);
        fwrite(next, 8, b * width, stdout);
        fwrite(native, 8, b, stdout);
        fflush(stdout);
        free(fields), free(nu), free(native), free(force), free(next);
    }
    return 0;
}
