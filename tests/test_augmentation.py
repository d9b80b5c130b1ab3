"""One draw a clip, the same batches for whoever fetches them and wherever a run goes on, and clips that have names when they are wrong."""
import json, shutil
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from torchvision.transforms.v2 import functional as V
from kinetics_dance.loading.augment import augment, change_colour
from kinetics_dance.loading.reader import MEAN, STD, normalise
from kinetics_dance.core.base import StudyError
from kinetics_dance.loading.reader import FrameStore
from kinetics_dance.loading.store import build_store
from kinetics_dance.loading.dataloader import ClipDataLoaders, ClipLoader, Clips
from kinetics_dance.loading.store import pack_jpeg
from kinetics_dance.video.decoding import numbered_clip
from kinetics_dance.video.encoding import normalise_clip


@pytest.fixture(scope='module', params=['none', 'jpeg'])
def study(request, tmp_path_factory):
    d = tmp_path_factory.mktemp('study')
    numbered_clip(d/'upload.mp4', n=45, size=(96, 128))
    normalise_clip(d/'upload.mp4', d/'clip.mp4')
    table = pd.DataFrame([(f'c{k:02}', 'clip.mp4', 'ab'[k % 2], 'train' if k < 9 else 'valid') for k in range(12)], columns=['clip_id', 'path', 'label', 'split'])
    build_store(table, d/'frames', n_frames=8, size=(48, 64), jobs=1, log=lambda line: None, compression=request.param)
    return d/'frames', table


def loaders(study, **how): return ClipDataLoaders.from_store(FrameStore(study[0]), study[1], n_frames=4, bs=2, flip=True, color_jitter=.3, zoom=.2, **how)
def epochs(dl, n): return [[t for b in dl for t in b] for _ in range(n)]
def equal(a, b): return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def test_a_run_that_goes_on_sees_what_it_would_have_seen(study):
    whole = epochs(loaders(study).train, 3)
    assert not equal(whole[0], whole[1])
    for k in (1, 2, 3):
        for workers in (0, 2):
            dl = loaders(study, num_workers=workers).train
            dl.epoch = k-2                                                              # k-1 epochs are done
            assert equal(epochs(dl, 1)[0], whole[k-1]), (k, workers)


def test_names_of_a_batch(study):
    for workers in (0, 2):
        dls = loaders(study, num_workers=workers)
        for dl in dls:
            for _ in range(2):
                seen = []
                for step, (x, y) in enumerate(dl):
                    ids = dl.batch_ids(step)
                    assert len(ids) == len(y) and study[1].set_index('clip_id').label[ids].tolist() == [dl.clips.classes[k] for k in y]
                    seen += ids
                assert len(set(seen)) == len(seen) == (8 if dl is dls.train else 3)
    # and it is these clips: fetched by name they are the frames of the batch
    dl = ClipLoader(Clips(FrameStore(study[0]), study[1], ['a', 'b'], 4), bs=3, train=True, color_jitter=0)
    for step, (x, _) in enumerate(dl):
        at = [dl.clips.ids.tolist().index(c) for c in dl.batch_ids(step)]
        assert torch.equal(x, normalise(dl.clips.batch(at, dl.epoch)[0]))


def test_validation_is_not_augmented(study):
    dls = loaders(study)
    first, second = epochs(dls.valid, 2)
    assert equal(first, second) and torch.equal(first[0], normalise(dls.valid.clips.batch(range(3))[0]))


@pytest.mark.parametrize('workers', [0, 2])
def test_the_model_draws_the_same_numbers(study, workers):
    "Loading takes nothing from torch's generator, with or without workers: dropout does not depend on who fetches"
    torch.manual_seed(0); want = torch.rand(3); torch.manual_seed(0)
    dls = loaders(study, num_workers=workers)
    epochs(dls.train, 1); dls.one_batch()
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_clip_of_another_shape_is_named(study, workers, tmp_path):
    shutil.copytree(study[0], tmp_path/'frames')
    store = FrameStore(tmp_path/'frames')
    wrong = np.random.default_rng(0).integers(0, 255, (8, 64, 48, 3), dtype=np.uint8)
    if store.packed:
        data, at = pack_jpeg(wrong)
        path = tmp_path/'frames/c04.mjpeg'
        path.write_bytes(data)
        note = json.loads(path.with_suffix('.json').read_text()); note['offsets'] = at.tolist(); path.with_suffix('.json').write_text(json.dumps(note))
        store._bytes['c04'] = len(data)
    else: np.save(tmp_path/'frames/c04.npy', wrong)                                     # as many bytes, another shape
    dls = ClipDataLoaders.from_store(store, study[1], n_frames=4, bs=9, num_workers=workers)
    with pytest.raises(StudyError, match='clip c04') as e: epochs(dls.train, 1)
    assert '(64, 48, 3)' in str(e.value) or '(8, 64, 48, 3)' in str(e.value)
    assert str(e.value).endswith('run 01_frames again') and '\n' not in str(e.value)


def test_locked_memory_only_where_it_helps(study):
    clips = Clips(FrameStore(study[0]), study[1], ['a', 'b'], 4)
    pinned = {(d, w): ClipLoader(clips, num_workers=w, device=d).pin_memory for d in ('cpu', 'cuda', 'cuda:1') for w in (0, 2)}
    assert {k for k, v in pinned.items() if v} == {('cuda', 2), ('cuda:1', 2)}


@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([(5, 7), (8, 8), (44, 60), (3, 4)]), st.floats(0, .9), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_one_draw_a_clip(b, t, size, color_jitter, zoom, seed):
    "A still clip stays still; a clip's result depends on its own draw alone; layout in memory does not matter; the input is left alone"
    g = torch.Generator().manual_seed(seed)
    x = normalise(torch.randint(0, 256, (b, 1, *size, 3), dtype=torch.uint8, generator=g).repeat(1, t, 1, 1, 1))
    u, before = torch.rand(b, 6, generator=g), x.clone()
    y = augment(x, u, color_jitter, zoom)
    assert y.shape == x.shape and y.isfinite().all() and torch.equal(x, before)
    assert torch.allclose(y, y[:, :1].expand_as(y), atol=1e-5)
    for k in range(b): assert torch.allclose(augment(x[k:k+1], u[k:k+1], color_jitter, zoom), y[k:k+1], atol=1e-4)
    assert torch.allclose(augment(x.contiguous(), u, color_jitter, zoom), y, atol=1e-4)


def test_colours_are_those_of_torchvision():
    "Frame by frame, where nothing leaves the range: torchvision cuts off what does"
    g = torch.Generator().manual_seed(0)
    raw = torch.randint(90, 160, (2, 1, 8, 12, 3), dtype=torch.uint8, generator=g)
    rgb = raw.permute(0, 1, 4, 2, 3)/255
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    back = lambda y: y*s + m
    one = torch.ones(2)
    for k, f in enumerate((V.adjust_brightness, V.adjust_contrast, V.adjust_saturation)):
        for v in (.8, 1.2):
            strength = [one, one, one]; strength[k] = one*v
            want = torch.stack([f(c[0], v)[None] for c in rgb])                          # one frame a clip: its mean is the clip's
            assert torch.allclose(back(change_colour(normalise(raw), *strength)), want, atol=2e-4), (f.__name__, v)
