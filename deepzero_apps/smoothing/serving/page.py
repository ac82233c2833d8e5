"""The page at the service's root: what is served, what it may be asked, how to ask it.

Self-contained: no script, nothing loaded from elsewhere; light or dark as the reader's system is.
"""

__all__ = ["page"]

import base64
import io
import json

import jinja2
from torch import Tensor

from deepzero_apps.smoothing.procedures import largest_radius
from deepzero_apps.smoothing.serving.subject import Limits, Subject

_LONGEST_EXAMPLE = 800

_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ subject.name }} · deepzero-apps</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5a6672; --ground: #fff;
  --panel: #f3f5f7; --line: #d8dee4; --mark: #0a66a8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa7b3; --ground: #14181c;
  --panel: #1d2329; --line: #343c44; --mark: #6db8ef; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1.5rem 1rem 3rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; } .soft { color: var(--soft); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .25rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font: .875rem/1.5 ui-monospace, monospace; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid var(--line); padding: .35rem .5rem .35rem 0; vertical-align: top; }
td:first-child { white-space: nowrap; } a { color: var(--mark); }
</style>
</head>
<body>
<h1>{{ subject.name }}</h1>
<p class="soft">A smoothed classifier. It answers with a class or abstains; on request with a
certificate: no perturbation of l2 norm below the radius changes the answer, with confidence
1 - alpha.</p>
<dl>
<dt>images</dt><dd>{{ subject.shape | join(" x ") }} (channels, height, width), numbers in [0, 1]
 or 8-bit PNG</dd>
<dt>classes</dt><dd>{{ classes }}</dd>
<dt>noise</dt><dd>sigma {{ subject.settings.sigma }}</dd>
<dt>prediction</dt><dd>{{ subject.n }} votes, alpha {{ subject.settings.alpha }}</dd>
<dt>certificate</dt><dd>{{ subject.settings.n0 }} + {{ subject.settings.n }} votes by the procedure
 {{ subject.settings.procedure }}; radius at most {{ reach }}</dd>
<dt>limits</dt><dd>{{ limits.images }} images and {{ limits.body }} bytes a request,
 {{ limits.queue }} requests at once, {{ limits.timeout }} s</dd>
<dt>classifier</dt><dd><code>{{ fingerprint }}</code></dd>
</dl>
<h2>Ask for classes</h2>
<pre>{{ predict }}</pre>
<h2>Ask for a certificate</h2>
<pre>{{ certify }}</pre>
<h2>All there is</h2>
<table>
{% for path, what in routes %}
<tr><td><code>{{ path }}</code></td><td>{{ what }}</td></tr>
{% endfor %}
</table>
<p class="soft">There is no authentication, and the numbers of this service tell anybody who asks
how it is used. Where strangers can reach it, put a proxy in front.</p>
</body>
</html>
"""
)

_ROUTES = (
    ("POST /v1/predict", "classes of images, null where it abstains"),
    ("POST /v1/certify", "the certificate of one image; n, n0, alpha, procedure, radii"),
    ("POST /v2/models/{name}/infer", "Open Inference Protocol: FP32 tensor to INT64 labels"),
    ("GET /v2/models/{name}", "Open Inference Protocol: metadata"),
    ("GET /v1/health", "whether questions are taken"),
    ("GET /metrics", "questions by status, votes, seconds"),
    ("GET /openapi.json", "the description for machines"),
)

_MOST_CLASSES = 20


def page(subject: Subject, limits: Limits, address: str, fingerprint: str) -> str:
    """Writes the page.

    Args:
        subject: What is served.
        limits: What a request may take.
        address: Where the reader found it, such as ``http://127.0.0.1:8000/``.
        fingerprint: The classifier's.

    Returns:
        HTML.
    """
    shown = ", ".join(subject.classes[:_MOST_CLASSES])
    more = len(subject.classes) - _MOST_CLASSES
    return _TEMPLATE.render(
        subject=subject,
        limits=limits,
        fingerprint=fingerprint,
        classes=f"{shown} and {more} more" if more > 0 else shown,
        reach=largest_radius(subject.settings),
        predict=_curl(address + "v1/predict", "images", subject.example),
        certify=_curl(address + "v1/certify", "image", subject.example),
        routes=[(path.replace("{name}", subject.name), what) for path, what in _ROUTES],
    )


def _curl(url: str, field: str, example: Tensor | None) -> str:
    """A command that works when it is pasted, or one that names a file if it would be too long."""
    image = None if example is None else _png(example)
    many = field == "images"
    head = f"curl -s {url} -H 'Content-Type: application/json' \\\n  -d "
    if image is None or len(image) > _LONGEST_EXAMPLE:
        quoted = "\\\"$(base64 < IMAGE.png | tr -d '\\n')\\\""
        return head + f'"{{\\"{field}\\": {f"[{quoted}]" if many else quoted}}}"'
    return head + "'" + json.dumps({field: [image] if many else image}) + "'"


def _png(image: Tensor) -> str | None:
    from PIL import Image

    if image.shape[0] not in (1, 3):
        return None
    array = (image.detach().cpu().permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
