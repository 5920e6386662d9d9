"Chains on inputs nobody thought of: any chain, any size, any damage."
import io

import numpy as np, PIL.Image, pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from zztoolkit import samples, vision as V
from zztoolkit.samples import sample_photo
from zztoolkit.errors import RequestError, ToolkitError

PHOTO = PIL.Image.open(sample_photo()).convert("RGB")
few = lambda n: settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def encoded(img: PIL.Image.Image, format: str = "PNG", **kw) -> bytes:
    buf = io.BytesIO()
    img.save(buf, format, **kw)
    return buf.getvalue()

sides, odd, fills = st.integers(1, 90), st.sampled_from([1, 3, 5, 9]), st.integers(0, 255)
sizes = sides | st.tuples(sides, sides)
turns = st.sampled_from(["bilinear", "bicubic", "nearest"])
EXACT = st.one_of(          # operations that no plan approximates
    st.builds(V.Resize, sizes, st.sampled_from(["area", "nearest", "nearest-exact"])), st.builds(V.Resize, sizes, st.sampled_from(["bilinear", "bicubic"]), antialias=st.just(False)),
    st.builds(V.Crop, st.integers(0, 5), st.integers(0, 5), st.integers(1, 9), st.integers(1, 9)),
    st.builds(V.Pad, st.integers(0, 9) | st.tuples(*[st.integers(0, 9)] * 4), fills, st.sampled_from(["constant", "edge", "reflect", "symmetric"])),
    st.builds(V.Letterbox, sizes, fills), st.builds(V.Flip, st.sampled_from(["horizontal", "vertical", "both"])),
    st.builds(V.Rotate, st.floats(-400, 400), turns, fills),
    st.builds(V.Warp, st.tuples(*[st.tuples(*[st.floats(-2, 2)] * 3)] * 2) | st.tuples(*[st.tuples(*[st.floats(-2, 2)] * 3)] * 3), st.none() | st.tuples(sides, sides), turns, fills),
    st.builds(V.GaussianBlur, odd | st.tuples(odd, odd), st.floats(0.1, 9)), st.builds(V.MedianBlur, odd),
    st.builds(V.Morphology, st.sampled_from(["erode", "dilate", "open", "close"]), odd | st.tuples(odd, odd), st.integers(1, 3)),
    st.builds(V.Threshold, st.floats(0, 255), fills, st.sampled_from(["binary", "binary_inv", "trunc", "tozero", "tozero_inv"])), st.builds(V.Equalize))
FUSED = st.builds(V.Resize, sizes, st.sampled_from(["bilinear", "bicubic"])) | st.builds(V.CenterCrop, sizes)
LAST = st.sampled_from([(), (V.Normalize(),), (V.ToDtype("float16"),), (V.ToDtype("uint8"),), (V.ToDtype(), V.Normalize())])
images = st.builds(lambda h, w, seed: np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8), st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))

def outcome(f, x):
    "What it gives, or the words it refuses with; anything else is a bug"
    try: return f(x)
    except RequestError as e: return type(e), str(e)

def same(a, b) -> bool: return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@few(300)
@given(st.lists(EXACT, max_size=5), LAST, images)
def test_a_plan_without_approximation_is_exact(ops, last, image):
    "The planner takes nothing together that it may not (what each kernel computes is checked in nbs/01b_cpu.ipynb)"
    chain = V.Chain(*ops, *last)
    assert same(outcome(chain, image), outcome(chain.plan(exact=True), image))

@few(200)
@given(st.lists(FUSED | st.builds(V.Flip), min_size=1, max_size=4), images)
def test_crop_before_resize_is_off_by_a_rounding(ops, image):
    chain = V.Chain(*ops)
    planned, exact = outcome(chain, image), outcome(chain.plan(exact=True), image)
    if not isinstance(planned, np.ndarray): assert planned == exact
    else: assert planned.shape == exact.shape and np.abs(planned.astype(int) - exact).max(initial=0) <= len(ops)     # 1 of 255 for each

@few(60)
@given(st.integers(60, 2200), st.floats(0.5, 2), st.integers(60, 95), st.booleans(), st.sampled_from([0, 1, 2]), st.sampled_from(["RGB", "GRAY"]),
       st.builds(V.Resize, st.integers(16, 256)) | st.builds(V.Resize, st.integers(16, 256), st.just("bicubic")) | st.builds(V.Letterbox, st.integers(16, 256)))
def test_scaled_decode_of_any_size(width, aspect, quality, progressive, subsampling, mode, resize):
    photo = encoded(PHOTO.resize((width, max(16, int(width * aspect)))), "JPEG", quality=quality, progressive=progressive, subsampling=subsampling)
    assert_within_bound(V.Chain(V.Decode(mode), resize), photo)

def assert_within_bound(chain: V.Chain, photo: bytes):
    "Mean difference under 2 of 255: what these photographs keep, and no bound for others (`test_fine_texture_is_planned_exactly`)"
    planned, exact = chain(photo), chain.plan(exact=True)(photo)
    assert planned.shape == exact.shape and np.abs(planned.astype(int) - exact).mean() < 2

@pytest.mark.parametrize("ratio", [4, 5, 6.2, 8, 12])
def test_scaled_decode_of_real_photographs(photos, ratio):
    "As they are and at a poor quality, progressive and not"
    for path in photos[::2]:
        img = PIL.Image.open(path).convert("RGB")
        small = img.resize((img.width * 1024 // min(img.size), img.height * 1024 // min(img.size)), PIL.Image.Resampling.LANCZOS)
        for photo in (path.read_bytes(), encoded(small, "JPEG", quality=30, progressive=True), encoded(small, "JPEG", quality=80, progressive=True), encoded(small, "JPEG", quality=80)):
            assert_within_bound(V.Chain(V.Decode(), V.Resize(int(min(PIL.Image.open(io.BytesIO(photo)).size) / ratio))), photo)

@few(200)
@given(st.lists(EXACT | FUSED, max_size=6), LAST, st.booleans())
def test_json_and_repr_round_trip(ops, last, exact):
    chain = V.Chain(V.Decode(), *ops, *last, exact=exact)
    again = V.Chain.from_json(chain.to_json())
    assert again == chain and hash(again) == hash(chain) and again.exact is exact
    assert eval(repr(chain), vars(V)) == chain

LARGE_PHOTO = encoded(PHOTO.resize((2048, 2400), PIL.Image.Resampling.LANCZOS), "JPEG", quality=90, progressive=True)

@pytest.mark.parametrize("ops", [(V.Resize(256), V.CenterCrop(224), V.Normalize()), (V.Letterbox(320), V.ToDtype()), (V.Resize(96, "bicubic"),)])
def test_exact_is_a_word_of_the_chain(ops):
    "Wherever a chain is planned: called, in a batch, for CUDA, and after a copy of it"
    chain = V.Chain(V.Decode(), *ops)
    exact, want = chain.with_exact(), chain.plan(exact=True)(LARGE_PHOTO)
    assert not same(chain(LARGE_PHOTO), want)
    assert same(exact(LARGE_PHOTO), want) and same(exact.batch([LARGE_PHOTO]).items[0], want) and same(exact.decoding(3)(LARGE_PHOTO), want)
    assert same(V.Chain.from_json(exact.to_json())(LARGE_PHOTO), want)
    assert [exact.plan(device).exact for device in ("cpu", "cuda")] == [True, True] and str(exact._planned_for_cuda) == str(chain.plan("cuda", exact=True))
    assert exact != chain and exact.with_exact(False) == chain

def test_fine_texture_is_planned_exactly():
    "No photograph: lines finer than a pixel of the result, which a JPEG of fewer pixels has as other lines"
    rows = (127 + 127 * np.sin(2 * np.pi * np.mgrid[:4096, :4096][0] / 9)).astype(np.uint8)
    lines, chain = encoded(PIL.Image.fromarray(rows), "JPEG", quality=90), V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize())
    chosen, measured = V.choose_plan(chain, [lines])
    assert chosen == chain.with_exact() and measured.worst_mean_255 > 2 and "mean difference" in measured.reason
    assert V.choose_plan(chain, [lines], tolerance=V.PlanTolerance(mean=20))[0] == chain

AWKWARD = {
    "1 pixel": encoded(PHOTO.resize((1, 1))), "wide": encoded(PHOTO.resize((3000, 1))), "tall": encoded(PHOTO.resize((1, 3000)), "JPEG"),
    "grey": encoded(PHOTO.convert("L"), "JPEG"), "alpha": encoded(PHOTO.convert("RGBA")), "grey and alpha": encoded(PHOTO.convert("LA")),
    "palette": encoded(PHOTO.convert("P"), "GIF"), "1 bit": encoded(PHOTO.convert("1")), "CMYK": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "progressive": encoded(PHOTO.resize((2000, 2000)), "JPEG", progressive=True), "16 bit": encoded(PIL.Image.fromarray(np.asarray(PHOTO.convert("L")).astype("uint16") * 257)),
    "float": encoded(PHOTO.convert("F"), "TIFF"), "animated": encoded(PHOTO.convert("P"), "GIF", save_all=True, append_images=[PHOTO.convert("P").rotate(9)]),
    "truncated": encoded(PHOTO, "JPEG")[:9000], "truncated progressive": encoded(PHOTO.resize((2000, 2000)), "JPEG", progressive=True)[:90_000], "WebP": encoded(PHOTO, "WEBP"), "BMP": encoded(PHOTO, "BMP")}

@pytest.mark.parametrize("what", AWKWARD)
def test_awkward_input_works_or_is_refused_with_words(what):
    for ops in ((V.Resize(256), V.CenterCrop(224), V.Normalize()), (V.Letterbox(64),), (V.Resize((8, 8), "area"), V.GaussianBlur(3, 1)), (V.Crop(0, 0, 1, 1),)):
        for mode in ("RGB", "GRAY", "UNCHANGED"):
            if mode != "RGB" and isinstance(ops[-1], V.Normalize): continue
            chain = V.Chain(V.Decode(mode), *ops)
            for run in (chain, chain.plan(exact=True)):
                found = outcome(run, AWKWARD[what])
                assert isinstance(found, np.ndarray) or found[1], what
    assert isinstance(outcome(V.Chain(V.Decode(), V.Resize((8, 8))), AWKWARD[what]), np.ndarray) != (what in ("float", "truncated", "truncated progressive"))

BODIES = [encoded(PHOTO.resize((300, 340)), "JPEG"), encoded(PHOTO.resize((1200, 1300)), "JPEG", progressive=True), encoded(PHOTO.resize((64, 64))),
          encoded(PHOTO.resize((64, 64)), "WEBP"), encoded(PHOTO.resize((64, 64)), "TIFF"), encoded(PHOTO.resize((32, 32)), "BMP"), encoded(PHOTO.convert("P").resize((64, 64)), "GIF")]

@few(400)
@given(st.sampled_from(BODIES), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=12), st.floats(0.05, 1))
def test_damaged_files_never_crash_the_process(body, damage, kept):
    data = bytearray(body[:max(1, int(len(body) * kept))])
    for where, what in damage:
        i = int(where * (len(data) - 1))
        data[i:i + len(what)] = what
    for chain in (V.Chain(V.Decode(max_pixels=10**7)), V.Chain(V.Decode(max_pixels=10**7), V.Resize(96, max_size=400)), V.Chain(V.Decode("GRAY", max_pixels=10**7), V.Letterbox(64))):
        found = outcome(chain, bytes(data))
        assert isinstance(found, np.ndarray) or found[1]

def test_a_plan_does_not_change_what_is_seen(photos, lite0, chain, labelled):
    "The classifier says the same of every photograph, approximations or not"
    exact = chain.plan(exact=True)
    best = [[int(lite0(run(p.read_bytes())[None]).argmax()) for p in [*photos, *(p for p, _ in labelled)]] for run in (chain, exact)]
    assert best[0] == best[1]

def test_the_chosen_plan_sees_what_exact_sees(lite0, chain):
    "Two of the large photographs get another name from the fast plan (nbs/01d_agreement.ipynb); what is chosen knows"
    photos = samples.large_photographs()
    chosen, measured = V.choose_plan(chain, photos, lite0)
    assert measured.top1 < 1 and chosen.exact and measured.images == len(photos) and "top-1" in measured.reason
    assert V.choose_plan(chain.decoding(3), photos, lite0)[0] == chain.decoding(3)

def test_what_cannot_be_planned_says_so():
    with pytest.raises(ToolkitError, match="CLAHE.*takes 1 channel, but the operation before it gives 3"): V.Chain(V.Decode(), V.CLAHE())
    with pytest.raises(ToolkitError, match="no such device"): V.Chain(V.Decode()).plan("tpu")

def test_one_number_is_not_taken_for_every_channel():
    with pytest.raises(ToolkitError, match=r"(?s)one number for each channel.*mean=0.5.*\(0.5, 0.5, 0.5\)"): V.Normalize(mean=.5)

def test_a_decoder_for_a_file_that_is_not_there():
    with pytest.raises(ToolkitError, match="no file at nowhere.jpg"): V.Chain(V.Decode(), V.Resize(8), V.Normalize()).plan().decoder("nowhere.jpg")
