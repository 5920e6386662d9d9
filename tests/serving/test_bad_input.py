"What strangers send, over real HTTP: each gets its own clear answer, and the server is well afterwards."
import io

import httpx, numpy as np, PIL.Image, pytest

from zztoolkit.errors import ToolkitError
from zztoolkit.serving.failures import build_error, PredictionError

OCTETS = "application/octet-stream"


def encoded(img: PIL.Image.Image, format: str, **kw) -> bytes:
    buf = io.BytesIO()
    img.save(buf, format, **kw)
    return buf.getvalue()

def bomb() -> bytes:
    "A PNG of 400 megapixels in 400 kB: one bit a pixel"
    return encoded(PIL.Image.new("1", (20_000, 20_000)), "PNG")

@pytest.fixture(autouse=True)
def healthy_afterwards(classifier, photo):
    yield
    assert "military uniform" in [a["label"] for a in classifier.predict(photo)]

@pytest.mark.slow
def test_our_own_413_is_not_taken_for_the_servers(classifier):
    with pytest.raises(Exception) as e: classifier.predict(bomb())
    assert e.value.status == 413 and "pixels" in e.value.message and "max_request_size" not in str(e.value)

REFUSED = {
    "not an image": (lambda p: b"%PDF-1.7 some document", 400, "DecodeError", "not an image"),
    "text": (lambda p: b"a picture of a cat", 400, "DecodeError", "not an image"),
    "empty": (lambda p: b"", 400, "DecodeError", "the body is empty"),
    "truncated JPEG": (lambda p: p.read_bytes()[:20_000], 400, "DecodeError", "truncated"),
    "only a JPEG header": (lambda p: p.read_bytes()[:300], 400, "DecodeError", "image"),
    "float TIFF": (lambda p: encoded(PIL.Image.open(p).convert("F"), "TIFF"), 400, "DecodeError", "send 8 or 16 bits"),
    "decompression bomb": (lambda p: bomb(), 413, "TooLargeError", "pixels"),
    "strip that a resize would blow up": (lambda p: encoded(PIL.Image.open(p).resize((3000, 2)), "PNG"), 413, "TooLargeError", "shorter edge"),
    "format that runs programs": (lambda p: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 400, "DecodeError", "not an image"),
}

@pytest.mark.parametrize("what", REFUSED)
def test_refused(classifier, photo, what):
    make, status, kind, says = REFUSED[what]
    r = classifier.post(make(photo), OCTETS)
    assert r.status_code == status
    assert r.json()["error"]["type"] == kind and says in r.json()["error"]["message"]
    assert r.reason_phrase.isascii() and kind in r.reason_phrase
    assert r.headers["content-type"].startswith("application/json")

ANSWERED = {
    "PNG with alpha": lambda img: encoded(img.convert("RGBA"), "PNG"),
    "CMYK JPEG": lambda img: encoded(img.convert("CMYK"), "JPEG"),
    "16-bit grey PNG": lambda img: encoded(PIL.Image.fromarray(np.asarray(img.convert("L")).astype("uint16") * 257), "PNG"),
    "palette GIF": lambda img: encoded(img.convert("P"), "GIF"),
    "WebP": lambda img: encoded(img, "WEBP"),
    "1 x 1": lambda img: encoded(img.resize((1, 1)), "PNG"),
    "wide": lambda img: encoded(img.resize((300, 20)), "PNG"),
}

@pytest.mark.parametrize("what", ANSWERED)
def test_unusual_but_good(classifier, photo, what):
    r = classifier.post(ANSWERED[what](PIL.Image.open(photo)), OCTETS)
    assert r.status_code == 200 and len(r.json()) == 5

def test_json_cannot_name_a_file_of_the_server(classifier):
    r = classifier.post(b'"/etc/passwd"', "application/json")
    assert r.status_code == 400 and "got str" in r.json()["error"]["message"]

def test_70_mib_body(classifier):
    with pytest.raises(Exception, match="70 MiB, the server accepts 64") as e: classifier.predict(bytes(70 << 20))
    assert e.value.status == 413
    try: r = raw(classifier, bytes(70 << 20))     # a client that does not know the limit
    except httpx.WriteError: return               # TorchServe may close the connection before it has read all
    assert r.status_code == 413 and "over the server's limit of 64 MiB" in str(build_error(r, classifier))

def raw(endpoint, body: bytes, **headers: str) -> httpx.Response:
    "A client of nobody's"
    keys = endpoint.server.management.tokens.bearer("inference")
    return httpx.post(f"{endpoint.server._url(0)}/predictions/{endpoint.name}", content=body, headers={"Content-Type": OCTETS} | keys | headers, timeout=60)

def test_wrong_token(classifier, photo):
    r = raw(classifier, photo.read_bytes(), Authorization="Bearer nonsense")
    error = build_error(r, classifier)
    assert r.status_code == 400 and error.status == 401 and "token is wrong" in str(error).lower()      # TorchServe's own status, and ours

def test_no_token(classifier, photo):
    r = httpx.post(f"{classifier.server._url(0)}/predictions/{classifier.name}", content=photo.read_bytes(), headers={"Content-Type": OCTETS})
    assert r.status_code == 400 and r.json()["type"] == "InvalidKeyException"

def test_form_content_type(classifier, photo):
    r = raw(classifier, photo.read_bytes(), **{"Content-Type": "application/x-www-form-urlencoded"})
    error = build_error(r, classifier)
    assert r.status_code == 500 and "sent as a form" in error.found and "octet-stream" in error.do

def test_unknown_model(classifier):
    with pytest.raises(Exception, match="404") as e: classifier.server.endpoint("nobody").predict(b"x")
    assert "classifier" in e.value.do

def test_a_list_says_which_item_is_wrong(classifier, photo):
    with pytest.raises(PredictionError, match="item 1 of a list of 3") as e: classifier.predict([photo, b"no image", photo])
    assert e.value.status == 400 and "return_exceptions=True" in e.value.do
    with pytest.raises(ToolkitError, match="no file at nowhere.jpg"): classifier.predict([photo, "nowhere.jpg"])
    good, bad = classifier.predict([photo, b"no image"], return_exceptions=True)
    assert len(good) == 5 and bad.kind == "DecodeError"
