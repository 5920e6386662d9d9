"One prediction of every model, at $URL, with the first token of the Secret; exit code 1 if one fails. Standard library alone"
import json, os, ssl, sys, urllib.error, urllib.request
from pathlib import Path

here = Path(os.environ.get("EXAMPLES", "/etc/zztoolkit/test"))
secret, certificate = (Path(os.environ.get(k, v)) for k, v in (("TOKENS", "/etc/zztoolkit/tokens/tokens"), ("CERTIFICATE", "/etc/zztoolkit/tls/tls.crt")))


def tokens() -> list[str]: return [l.strip() for l in secret.read_text().splitlines() if l.strip() and not l.startswith("#")] if secret.exists() else []

def trust() -> ssl.SSLContext:
    "The service's own certificate is trusted, whoever signed it; its name is not compared: it may be made for the gateway"
    context = ssl.create_default_context(cafile=str(certificate) if certificate.exists() else None)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context

def predict(model: dict) -> str:
    "What went wrong, '' for nothing"
    if not model.get("example"): return "no example to send: zz deploy render --example NAME=FILE"
    headers = {"Content-Type": model["example"]["contentType"]} | {"Authorization": f"Bearer {t}" for t in tokens()[:1]}
    body = (here / Path(model["example"]["file"]).name).read_bytes()
    url = f"{os.environ['URL']}/predictions/{model['name']}/{model['version']}"
    try: answer = urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60, context=trust()).read()
    except urllib.error.HTTPError as e: return f"{e.code}: {e.read()[:300].decode(errors='replace')}"
    except OSError as e: return f"{type(e).__name__}: {e}"
    print(f"{model['name']} {model['version']}: {answer[:200].decode(errors='replace')}")
    return "" if answer else "an empty answer"

failed = {f"{m['name']} {m['version']}": why for m in json.loads((here / "models.json").read_text()) if (why := predict(m))}
for model, why in failed.items(): print(f"{model} FAILED: {why}", file=sys.stderr)
sys.exit(bool(failed))
