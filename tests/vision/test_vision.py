"Chains on unexpected inputs: any chain, any size, any damage."
import io

import numpy as np, PIL.Image, pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from zztoolkit import samples, vision as V
from zztoolkit.samples import sample_photo
from zztoolkit.errors import RequestError, ToolkitError

PHOTO = PIL.Image.open(sample_photo()).convert("RGB")

def few(n: int) -> settings:
    checks = list(HealthCheck)
    return settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=checks)

def encoded(img: PIL.Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    img.save(out, format, **options)
    return out.getvalue()

def one_of(*values): return st.sampled_from(values)

def row(values, n: int = 3): return st.tuples(*[values] * n)

sides, odd, fills = st.integers(1, 90), one_of(1, 3, 5, 9), st.integers(0, 255)
sizes = sides | row(sides, 2)
turns = one_of("bilinear", "bicubic", "nearest")
matrices = row(row(st.floats(-2, 2)), 2) | row(row(st.floats(-2, 2)), 3)
smooth = one_of("bilinear", "bicubic")
paddings = st.integers(0, 9) | row(st.integers(0, 9), 4)
modes = one_of("constant", "edge", "reflect", "symmetric")
kernels = odd | row(odd, 2)
thresholds = one_of("binary", "binary_inv", "trunc", "tozero", "tozero_inv")
corners, lengths = st.integers(0, 5), st.integers(1, 9)

EXACT = st.one_of(          # operations that no plan approximates
    st.builds(V.Resize, sizes, one_of("area", "nearest", "nearest-exact")),
    st.builds(V.Resize, sizes, smooth, antialias=st.just(False)),
    st.builds(V.Crop, corners, corners, lengths, lengths),
    st.builds(V.Pad, paddings, fills, modes),
    st.builds(V.Letterbox, sizes, fills),
    st.builds(V.Flip, one_of("horizontal", "vertical", "both")),
    st.builds(V.Rotate, st.floats(-400, 400), turns, fills),
    st.builds(V.Warp, matrices, st.none() | row(sides, 2), turns, fills),
    st.builds(V.GaussianBlur, kernels, st.floats(0.1, 9)),
    st.builds(V.MedianBlur, odd),
    st.builds(V.Morphology, one_of("erode", "dilate", "open", "close"), kernels, st.integers(1, 3)),
    st.builds(V.Threshold, st.floats(0, 255), fills, thresholds),
    st.builds(V.Equalize))
FUSED = st.builds(V.Resize, sizes, smooth) | st.builds(V.CenterCrop, sizes)
LAST = one_of(
    (), (V.Normalize(),), (V.ToDtype("float16"),), (V.ToDtype("uint8"),),
    (V.ToDtype(), V.Normalize()))

def noise(h: int, w: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)

images = st.builds(noise, st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))

def outcome(f, x):
    "Return the result, or the type and the text of a `RequestError`; anything else is a bug"
    try: return f(x)
    except RequestError as e: return type(e), str(e)

def same(a, b) -> bool: return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@few(300)
@given(st.lists(EXACT, max_size=5), LAST, images)
def test_a_plan_without_approximation_is_exact(ops, last, image):
    "The planner fuses only what it may (the kernels are checked in nbs/vision/07_cpu_kernels.ipynb)"
    chain = V.Chain(*ops, *last)
    assert same(outcome(chain, image), outcome(chain.plan(exact=True), image))

@few(200)
@given(st.lists(FUSED | st.builds(V.Flip), min_size=1, max_size=4), images)
def test_crop_before_resize_is_off_by_a_rounding(ops, image):
    chain = V.Chain(*ops)
    planned, exact = outcome(chain, image), outcome(chain.plan(exact=True), image)
    if not isinstance(planned, np.ndarray):
        assert planned == exact
        return
    assert planned.shape == exact.shape
    off = np.abs(planned.astype(int) - exact)
    assert off.max(initial=0) <= len(ops)     # 1 of 255 for each

targets = st.integers(16, 256)
resizes = st.one_of(
    st.builds(V.Resize, targets), st.builds(V.Resize, targets, st.just("bicubic")),
    st.builds(V.Letterbox, targets))

@few(60)
@given(
    st.integers(60, 2200), st.floats(0.5, 2), st.integers(60, 95), st.booleans(), one_of(0, 1, 2),
    one_of("RGB", "GRAY"), resizes)
def test_scaled_decode_of_any_size(
    width, aspect, quality, progressive, subsampling, mode, resize,
):
    img = PHOTO.resize((width, max(16, int(width * aspect))))
    options = {"quality": quality, "progressive": progressive, "subsampling": subsampling}
    assert_close(V.Chain(V.Decode(mode), resize), encoded(img, "JPEG", **options))

def assert_close(chain: V.Chain, photo: bytes):
    """Mean difference under 2 of 255.

    These photographs keep it; it bounds no others (`test_fine_texture_is_planned_exactly`).
    """
    planned, exact = chain(photo), chain.plan(exact=True)(photo)
    assert planned.shape == exact.shape and np.abs(planned.astype(int) - exact).mean() < 2

@pytest.fixture(scope="module")
def encodings(photos) -> list[bytes]:
    "Photographs as they are and at a poor quality, progressive and not"
    bodies = []
    for path in photos[::2]:
        img = PIL.Image.open(path).convert("RGB")
        short = min(img.size)
        size = img.width * 1024 // short, img.height * 1024 // short
        small = img.resize(size, PIL.Image.Resampling.LANCZOS)
        bodies += [
            path.read_bytes(),
            encoded(small, "JPEG", quality=30, progressive=True),
            encoded(small, "JPEG", quality=80, progressive=True),
            encoded(small, "JPEG", quality=80)]
    return bodies

@pytest.mark.slow
@pytest.mark.parametrize("ratio", [4, 5, 6.2, 8, 12])
def test_scaled_decode_of_real_photographs(encodings, ratio):
    for photo in encodings:
        target = int(min(PIL.Image.open(io.BytesIO(photo)).size) / ratio)
        assert_close(V.Chain(V.Decode(), V.Resize(target)), photo)

@few(200)
@given(st.lists(EXACT | FUSED, max_size=6), LAST, st.booleans())
def test_json_and_repr_round_trip(ops, last, exact):
    chain = V.Chain(V.Decode(), *ops, *last, exact=exact)
    again = V.Chain.from_json(chain.to_json())
    assert again == chain and hash(again) == hash(chain) and again.exact is exact
    assert eval(repr(chain), vars(V)) == chain

LARGE = PHOTO.resize((2048, 2400), PIL.Image.Resampling.LANCZOS)
LARGE_PHOTO = encoded(LARGE, "JPEG", quality=90, progressive=True)
CLASSIFIER = V.Resize(256), V.CenterCrop(224), V.Normalize()

@pytest.mark.parametrize("ops", [
    CLASSIFIER, (V.Letterbox(320), V.ToDtype()), (V.Resize(96, "bicubic"),)])
def test_exact_belongs_to_the_chain(ops):
    "Wherever a chain is planned: called, in a batch, for CUDA, and after a copy of it"
    chain = V.Chain(V.Decode(), *ops)
    exact, want = chain.with_exact(), chain.plan(exact=True)(LARGE_PHOTO)
    assert not same(chain(LARGE_PHOTO), want)
    assert same(exact(LARGE_PHOTO), want)
    assert same(exact.batch([LARGE_PHOTO]).items[0], want)
    assert same(exact.with_reducing_gap(3)(LARGE_PHOTO), want)
    assert same(V.Chain.from_json(exact.to_json())(LARGE_PHOTO), want)
    assert [exact.plan(device).exact for device in ("cpu", "cuda")] == [True, True]
    assert str(exact._cuda_plan) == str(chain.plan("cuda", exact=True))
    assert exact != chain and exact.with_exact(False) == chain

@pytest.mark.slow
def test_fine_texture_is_planned_exactly():
    "Lines finer than a pixel of the result: a JPEG of fewer pixels has other lines"
    wave = 127 + 127 * np.sin(2 * np.pi * np.mgrid[:4096, :4096][0] / 9)
    lines = encoded(PIL.Image.fromarray(wave.astype(np.uint8)), "JPEG", quality=90)
    chain = V.Chain(V.Decode(), *CLASSIFIER)
    chosen, measured = V.choose_plan(chain, [lines])
    assert chosen == chain.with_exact()
    assert measured.worst_mean_255 > 2 and "mean difference" in measured.reason
    assert V.choose_plan(chain, [lines], tolerance=V.PlanTolerance(mean=20))[0] == chain

def test_old_names_of_methods_warn():
    chain = V.Chain(V.Decode(), V.Crop())
    with pytest.warns(DeprecationWarning, match="with_reducing_gap"):
        assert chain.decoding(2) == chain.with_reducing_gap(2)
    with pytest.warns(DeprecationWarning, match="with_crop"):
        assert chain.at((0, 0, 2, 2)) == chain.with_crop((0, 0, 2, 2))

SQUARE, GREY, PALETTE = PHOTO.resize((2000, 2000)), PHOTO.convert("L"), PHOTO.convert("P")
DEEP = PIL.Image.fromarray(np.asarray(GREY).astype("uint16") * 257)
AWKWARD = {
    "1 pixel": encoded(PHOTO.resize((1, 1))),
    "wide": encoded(PHOTO.resize((3000, 1))),
    "tall": encoded(PHOTO.resize((1, 3000)), "JPEG"),
    "grey": encoded(GREY, "JPEG"),
    "alpha": encoded(PHOTO.convert("RGBA")),
    "grey and alpha": encoded(PHOTO.convert("LA")),
    "palette": encoded(PALETTE, "GIF"),
    "1 bit": encoded(PHOTO.convert("1")),
    "CMYK": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "progressive": encoded(SQUARE, "JPEG", progressive=True),
    "16 bit": encoded(DEEP),
    "float": encoded(PHOTO.convert("F"), "TIFF"),
    "animated": encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(9)]),
    "truncated": encoded(PHOTO, "JPEG")[:9000],
    "truncated progressive": encoded(SQUARE, "JPEG", progressive=True)[:90_000],
    "WebP": encoded(PHOTO, "WEBP"),
    "BMP": encoded(PHOTO, "BMP")}
REJECTED = "float", "truncated", "truncated progressive"
CHAINS = (
    CLASSIFIER, (V.Letterbox(64),), (V.Resize((8, 8), "area"), V.GaussianBlur(3, 1)),
    (V.Crop(0, 0, 1, 1),))

@pytest.mark.parametrize("what", AWKWARD)
def test_awkward_input_works_or_is_rejected_with_a_reason(what):
    for ops in CHAINS:
        for mode in ("RGB", "GRAY", "UNCHANGED"):
            if mode != "RGB" and isinstance(ops[-1], V.Normalize): continue
            chain = V.Chain(V.Decode(mode), *ops)
            for run in (chain, chain.plan(exact=True)):
                result = outcome(run, AWKWARD[what])
                assert isinstance(result, np.ndarray) or result[1], what
    small = outcome(V.Chain(V.Decode(), V.Resize((8, 8))), AWKWARD[what])
    assert isinstance(small, np.ndarray) != (what in REJECTED)

TINY = PHOTO.resize((64, 64))
BODIES = [
    encoded(PHOTO.resize((300, 340)), "JPEG"),
    encoded(PHOTO.resize((1200, 1300)), "JPEG", progressive=True),
    encoded(TINY), encoded(TINY, "WEBP"), encoded(TINY, "TIFF"),
    encoded(PHOTO.resize((32, 32)), "BMP"), encoded(PALETTE.resize((64, 64)), "GIF")]
damages = st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8))

@few(400)
@given(one_of(*BODIES), st.lists(damages, min_size=1, max_size=12), st.floats(0.05, 1))
def test_damaged_files_never_crash_the_process(body, damage, kept):
    data = bytearray(body[:max(1, int(len(body) * kept))])
    for where, what in damage:
        i = int(where * (len(data) - 1))
        data[i:i + len(what)] = what
    decode, grey = V.Decode(max_pixels=10**7), V.Decode("GRAY", max_pixels=10**7)
    for ops in ([decode], [decode, V.Resize(96, max_size=400)], [grey, V.Letterbox(64)]):
        result = outcome(V.Chain(*ops), bytes(data))
        assert isinstance(result, np.ndarray) or result[1]

@pytest.mark.slow
def test_a_plan_does_not_change_the_top_class(photos, lite0, chain, labelled):
    "The classifier's top class of every photograph is the same, approximations or not"
    paths = [*photos, *(p for p, _ in labelled)]
    def classes(run): return [int(lite0(run(p.read_bytes())[None]).argmax()) for p in paths]
    assert classes(chain) == classes(chain.plan(exact=True))

@pytest.mark.slow
def test_the_chosen_plan_keeps_the_top_class(lite0, chain):
    "The fast plan changes it for two of the large photographs, and is not chosen"
    photos = samples.large_photographs()
    chosen, measured = V.choose_plan(chain, photos, lite0)
    assert measured.top1 < 1 and "top-1" in measured.reason
    assert chosen.exact and measured.images == len(photos)
    finer = chain.with_reducing_gap(3)
    assert V.choose_plan(finer, photos, lite0)[0] == finer

def test_a_chain_that_cannot_be_planned_is_an_error():
    text = "CLAHE.*takes 1 channel, but the operation before it returns 3"
    with pytest.raises(ToolkitError, match=text): V.Chain(V.Decode(), V.CLAHE())
    with pytest.raises(ToolkitError, match="no such device"): V.Chain(V.Decode()).plan("tpu")

def test_one_number_is_not_taken_for_every_channel():
    text = r"(?s)one number for each channel.*mean=0.5.*\(0.5, 0.5, 0.5\)"
    with pytest.raises(ToolkitError, match=text): V.Normalize(mean=.5)

def test_a_decoder_for_a_missing_file():
    plan = V.Chain(V.Decode(), *CLASSIFIER).plan()
    with pytest.raises(ToolkitError, match="no file at nowhere.jpg"): plan.decoder("nowhere.jpg")
