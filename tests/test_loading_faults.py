"""Loading when the machine fails it: a full /dev/shm, workers that die, hang or lose a batch, too many open files, and
errors of the system that must not be called damage."""
import builtins, errno, hashlib, json, os, resource, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from kinetics_dance.loading import workers as workers_module
from kinetics_dance.loading.reader import FrameStore
from kinetics_dance.core.base import StudyError
from kinetics_dance.loading.workers import fit_workers, worker_error
from kinetics_dance.loading.dataloader import ClipDataLoaders, ClipLoader, Clips
from kinetics_dance.training.recipe import Recipe
from kinetics_dance.loading.store import STORE_FORMAT
from conftest import ROOT

LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='/dev/shm and /proc are of Linux')
SHAPE = 8, 48, 64, 3


def make_store(folder, n=60):
    "A frame store of noise, and the table of its clips"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for k in range(n):
        c = f'clip{k:05d}'
        np.save(folder/f'{c}.npy', rng.integers(0, 255, SHAPE, np.uint8))
        (folder/f'{c}.json').write_text(json.dumps(dict(seconds=list(range(8)))))
        data = (folder/f'{c}.npy').read_bytes()
        rows.append(dict(clip_id=c, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    head = dict(format=STORE_FORMAT, n_frames=8, height=48, width=64, sampler='uniform', reader='pyav', compression='none')
    (folder/'store.json').write_text(json.dumps(head))
    pd.DataFrame(rows).to_parquet(folder/'index.parquet')
    split = ['valid' if k % 10 == 0 else 'train' for k in range(n)]
    table = pd.DataFrame(dict(clip_id=[r['clip_id'] for r in rows], label=[f'dance {k % 3}' for k in range(n)], split=split))
    table.to_csv(folder.parent/'table.csv', index=False)
    return table


@pytest.fixture(scope='module')
def noise(tmp_path_factory):
    at = tmp_path_factory.mktemp('noise')
    return at/'frames', make_store(at/'frames')


def loader(noise, kind=ClipLoader, wait=300, **how):
    store, table = noise
    clips = Clips(FrameStore(store), table, sorted(table.label.unique()), 8, (48, 64))
    dl = kind(clips, **dict(bs=10, train=True, num_workers=1) | how)
    dl.fake_l.wait = wait
    return dl


def run(code, before='', timeout=120, cwd=None):
    "A script in a process of its own, after a line of shell"
    script = Path(cwd)/'script.py'
    script.write_text('import warnings; warnings.simplefilter("ignore")\n' + code)
    return subprocess.run(['bash', '-c', f'{before} exec "$0" "$1"', sys.executable, str(script)], capture_output=True, text=True,
                          timeout=timeout, cwd=cwd, env=os.environ | {'PYTHONPATH': str(ROOT)})


# --- batches that get lost

COUNT = '''
import sys, pandas as pd
from kinetics_dance.loading.reader import FrameStore
from kinetics_dance.core.base import StudyError
from kinetics_dance.loading.dataloader import ClipDataLoaders
if __name__ == '__main__':
    table = pd.read_csv('table.csv')
    for workers in (6, 'auto'):
        dls = ClipDataLoaders.from_store(FrameStore('frames'), table, n_frames=8, crop=(48, 64), bs=9, num_workers=workers)
        try: print(workers, sum(len(y) for _ in range(3) for x,y in dls.train))
        except StudyError as e: print(workers, 'error:', e)
'''


def with_shared_memory(mount, script, noise, folder):
    "Run a script beside the clips of noise, where /dev/shm is mounted so"
    small = f'mount -t tmpfs -o {mount} none /dev/shm &&'
    if subprocess.run(['unshare', '-m', 'bash', '-c', small + ' true'], capture_output=True).returncode:
        pytest.skip('this user may not mount a small /dev/shm (unshare -m)')
    for f in ('frames', 'table.csv'): (folder/f).symlink_to(noise[0].parent/f)
    (folder/'script.py').write_text(script)
    return subprocess.run(['unshare', '-m', 'bash', '-c', f'{small} exec {sys.executable} -W ignore script.py'], cwd=folder, capture_output=True,
                          text=True, timeout=120, env=os.environ | {'PYTHONPATH': str(ROOT)})


@LINUX
def test_a_full_shared_memory_is_an_error(noise, tmp_path):
    "Three epochs of 54 clips: all of them, or one line; never fewer clips in silence"
    p = with_shared_memory('size=2m', COUNT, noise, tmp_path)
    six, auto = p.stdout.splitlines()
    assert six.startswith('6 error: a worker that fetches batches: there is no room for batches in /dev/shm (2 MB); set workers: 0')
    assert '--shm-size' in six and 'Traceback' not in p.stderr
    assert auto == 'auto 162'


class Unpackable:
    def __reduce__(self): raise RuntimeError('unable to allocate shared memory(shm) for file </x>: No space left on device (28)')


class Losing(ClipLoader):
    "One batch cannot be packed for the way to the training"
    lost = 3
    def create_batches(self, samps):
        for k, b in enumerate(super().create_batches(samps)): yield Unpackable() if k == self.lost else b


@LINUX
@pytest.mark.parametrize('lost', [0, 3, 5])
def test_a_batch_that_cannot_be_packed(noise, lost):
    dl = loader(noise, type('Losing', (Losing,), dict(lost=lost)))
    with pytest.raises(StudyError, match='no room for batches in /dev/shm'): list(dl)


@LINUX
def test_a_batch_that_python_drops(noise, monkeypatch):
    "Without our ending of the worker, as it was before: the last batch is missing, and that is counted"
    monkeypatch.setattr(workers_module, '_leave', lambda error, batch: None)
    with pytest.raises(StudyError, match='1 of 6 batches of the epoch did not come'): list(loader(noise, type('L', (Losing,), dict(lost=5))))


class Short(ClipLoader):
    def create_batches(self, samps):
        for k, (x, y, which) in enumerate(super().create_batches(samps)): yield (x[1:], y[1:], which[8:]) if k == 2 else (x, y, which)


class Gap(ClipLoader):
    def create_batches(self, samps):
        for k, b in enumerate(super().create_batches(samps)):
            if k != 2: yield b


class Early(ClipLoader):
    def create_batches(self, samps):
        for k, b in enumerate(super().create_batches(samps)):
            if k < 5: yield b


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('kind,says', [(Short, 'batch 2 of epoch 0 holds other clips'), (Gap, 'batch 2 of epoch 0 holds other clips'),
                                       (Early, '1 of 6 batches')])
def test_a_clip_or_a_batch_that_is_missing(noise, kind, says, workers):
    with pytest.raises(StudyError, match=says): list(loader(noise, kind, num_workers=workers))


def test_what_is_left_of_an_epoch_is_counted(noise):
    "An epoch that is taken up in its middle has fewer batches, and that is no error; looking at a batch is none either"
    dl = loader(noise, num_workers=0)
    dl.load_state(dict(epoch=4, step=2))
    seen = [dl.one_batch() is not None and len(y) for x, y in dl]
    assert seen == [10]*4 and dl.epoch == 4
    cut = loader(noise, Early, num_workers=0)
    cut.load_state(dict(epoch=4, step=2))
    assert len(list(cut)) == 4      # its first five, of the four that are left


# --- workers that end

class Dying(ClipLoader):
    def create_batch(self, idxs):
        if torch.utils.data.get_worker_info() and self.dies(len(self.clips)): pass
        return super().create_batch(idxs)


@LINUX
@pytest.mark.parametrize('how,says', [
    (lambda n: os.kill(os.getpid(), 9), 'killed, most likely because memory ran out; set workers: 0'),
    (lambda n: os.kill(os.getpid(), 7), 'no room for batches in /dev/shm'),
    (lambda n: os._exit(3), 'ended without a word'),
    (lambda n: time.sleep(60), 'no batch came for 1 s'),
    (lambda n: open('/nowhere/at/all'), None),
    (lambda n: (_ for _ in ()).throw(OSError(errno.EIO, 'Input/output error')), 'input/output error')])
def test_a_worker_that_ends(noise, how, says):
    began, dl = time.monotonic(), loader(noise, type('Dying', (Dying,), dict(dies=staticmethod(how))), wait=1 if says and '1 s' in says else 60)
    with pytest.raises(StudyError if says else FileNotFoundError, match=says or 'nowhere'): list(dl)
    assert time.monotonic() - began < 40        # far from the minute that its worker sleeps


@pytest.mark.parametrize('words', [
    'DataLoader worker (pid 7) is killed by signal: Killed. ', 'DataLoader worker (pid(s) 7, 8) exited unexpectedly',
    'Too many open files. Communication with the workers is no longer possible. Please increase the limit using `ulimit -n`'])
def test_the_end_of_a_worker_in_the_middle_of_a_step(noise, words):
    "A signal brings it, wherever the training is: still one line"
    from fastai.callback.core import Callback
    from kinetics_dance.training.learner import fit, make_learner
    store, table = noise
    recipe = Recipe(clip_frames=8, crop_height=48, crop_width=64, epochs=1, workers=0)
    dls = ClipDataLoaders.from_store(FrameStore(store), table, n_frames=8, crop=recipe.crop, bs=10)
    class Signal(Callback):
        def after_pred(self): raise RuntimeError(words)
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, 3)
        def forward(self, x): return self.head(x.mean((1, 3, 4)))
    with pytest.raises(StudyError, match='a worker that fetches batches: ') as e: fit(make_learner(Net(), dls, recipe), 1, .01, recipe, cbs=[Signal()])
    assert '\n' not in str(e.value) and 'workers: 0' in str(e.value)
    assert worker_error(RuntimeError('mat1 and mat2 shapes cannot be multiplied')) is None


# --- how many workers

@LINUX
def test_as_many_workers_as_fit(monkeypatch):
    def machine(cores=9, room=1e9, space=None, files=None):
        monkeypatch.setattr(workers_module, '_cores', lambda: cores)
        monkeypatch.setattr(workers_module, 'shared_room', lambda: (room, room))
        monkeypatch.setattr(workers_module, '_limits', lambda: (space, files))
    machine()
    assert fit_workers(10_000_000, 'cuda') == (8, '') and fit_workers(10_000_000, 'cpu') == (0, '')
    for limit, n in ((dict(cores=3), 2), (dict(room=64e6), 2), (dict(space=70e6), 2), (dict(files=128), 3)):
        machine(**limit)
        assert fit_workers(10_000_000, 'cuda') == (n, ''), limit
    for limit, why in ((dict(cores=1), 'no core'), (dict(room=30e6), '/dev/shm has 30 MB left, too little for batches of 10 MB'),
                       (dict(space=30e6), 'ulimit -v'), (dict(files=64), 'ulimit -n')):
        machine(**limit)
        n, said = fit_workers(10_000_000, 'cuda:1')
        assert n == 0 and why in said, limit


def test_automatic_workers_say_why_there_are_none_and_change_nothing(noise, monkeypatch):
    import kinetics_dance.loading.dataloader as loading
    store, table = noise
    def epoch(workers, why=''):
        news = []
        monkeypatch.setattr(loading, 'fit_workers', lambda *a: (workers, why))
        dls = ClipDataLoaders.from_store(FrameStore(store), table, n_frames=8, crop=(48, 64), bs=10, num_workers='auto', log=news.append)
        assert dls.train.fake_l.num_workers == workers
        return torch.stack([x for x, y in dls.train]), news
    none, two = epoch(0, 'there is no core to spare'), epoch(2)
    assert torch.equal(none[0], two[0])
    assert (none[1], two[1]) == (['workers: 0, because there is no core to spare'], [])


@pytest.mark.parametrize('workers,ok', [('auto', True), (0, True), (3, True), (-1, False), ('two', False), (True, False), (1.5, False), (None, False)])
def test_values_of_workers(workers, ok):
    if ok: assert Recipe(workers=workers).workers == workers
    else:
        with pytest.raises(StudyError, match='workers: .* is neither auto nor a whole number from 0'): Recipe(workers=workers)


# --- open files

FILES = '''
import os, sys
from kinetics_dance.loading.reader import FrameStore
from kinetics_dance.loading.streaming import PackedStore
import pandas as pd, torch
from kinetics_dance.loading.dataloader import ClipDataLoaders
if __name__ == '__main__':
    store, table = FrameStore('frames'), pd.read_csv('table.csv')
    def files(): return len(os.listdir('/proc/self/fd'))
    for s in (store, PackedStore('packs')):
        total, most = 0, 0
        for _ in range(2):
            for c in s.clip_ids:
                total, most = total + int(s[c].sum()), max(most, files())
        print(type(s).__name__, total, most)
    for workers in (0, 2):
        dls = ClipDataLoaders.from_store(FrameStore('frames'), table, n_frames=8, crop=(48, 64), bs=10, num_workers=workers)
        print(workers, sum(len(y) for x, y in dls.train))
    others = []
    try:
        while True: others.append(open('table.csv'))        # somebody else takes all that is left
    except OSError: pass
    print('crowded', 2*sum(int(store[c].sum()) for c in store.clip_ids))
    del store._open; store._open = {}
    while True:
        try: others.append(open('table.csv'))
        except OSError: break
    try: store['clip00000']
    except Exception as e: print(type(e).__name__, e)
'''


@LINUX
def test_few_files_may_be_open(tmp_path):
    "300 clips under `ulimit -n 128`: all are read, from files, from shards, with workers; and at the end of the rope the cause has its name"
    from kinetics_dance.loading.shards import pack_store
    make_store(tmp_path/'frames', 300)
    pack_store(tmp_path/'frames', tmp_path/'packs', shard_mb=.25, log=None)
    assert len(list((tmp_path/'packs').glob('*.tar'))) > 64
    p = run(FILES, 'ulimit -n 128;', cwd=tmp_path)
    assert not p.returncode, p.stderr
    raw, packed, none, two, crowded, end = p.stdout.splitlines()
    assert raw.split()[1] == packed.split()[1] == crowded.split()[1]
    assert max(int(s.split()[2]) for s in (raw, packed)) < 100
    assert (none, two) == ('0 270', '2 270')
    assert end == 'StudyError clip clip00000: frames/clip00000.npy: this process has too many files open; raise the limit (ulimit -n 4096) and run it again'


def test_maps_by_the_limit_of_open_files(monkeypatch):
    from kinetics_dance.loading.reader import most_maps
    for soft, n in ((64, 8), (128, 21), (256, 64), (1024, 320), (4096, 512), (resource.RLIM_INFINITY, 512)):
        monkeypatch.setattr(resource, 'getrlimit', lambda what: (soft, soft))
        assert most_maps() == n


# --- what is not damage

def failing(monkeypatch, code):
    "From now on no file can be opened, in Python or in a library"
    import safetensors, safetensors.torch
    def fail(*args, **kwargs): raise OSError(code, os.strerror(code))
    def native(*args, **kwargs): raise RuntimeError(f'I/O error: {os.strerror(code)} (os error {code})')
    for owner, name in ((Path, 'read_text'), (Path, 'read_bytes'), (Path, 'open'), (builtins, 'open'), (np, 'load'), (pd, 'read_parquet'), (torch, 'load')):
        monkeypatch.setattr(owner, name, fail)
    for owner, name in ((safetensors, 'safe_open'), (safetensors.torch, 'load_file')): monkeypatch.setattr(owner, name, native)
    import kinetics_dance.training.checkpoints as checkpoints
    monkeypatch.setattr(checkpoints, 'safe_open', native)


@pytest.fixture(scope='module')
def things(noise, tmp_path_factory):
    "Whatever is read: a call for each, which is fine as long as files can be opened"
    from kinetics_dance.evaluation import predictions
    from kinetics_dance.loading import shards, store, streaming
    from kinetics_dance.models import config, weights
    from kinetics_dance.training import checkpoints, runs
    from kinetics_dance.training.frozen_features import FeatureStore
    from kinetics_dance.per_frame import PerFrame
    at = tmp_path_factory.mktemp('things')
    frames, _ = noise
    shards.pack_store(frames, at/'packs', log=None)
    shard = next((at/'packs').glob('*.tar'))
    model = PerFrame(n_classes=3, backbone='small', weights='none')
    card = dict(format=1, model='kinetics_dance.per_frame:PerFrame', arguments=dict(backbone='small'), classes=['a', 'b', 'c'], frames=8,
                crop=[48, 64], stored=dict(n_frames=8, height=48, width=64), clip_seconds=3., key='k')
    config.write_model(at/'model', model, card)
    (at/'features').mkdir()
    (at/'features'/'features.json').write_text(json.dumps(dict(format=2, shape=[8, 1, 4, 3], dtype='float16', shards=[['clip00000']])))
    np.save(at/'features'/'000000.npy', np.zeros((1, 8, 1, 4, 3), np.float16))
    np.savez(at/'w.npz', a=np.zeros(3))
    p = pd.DataFrame(dict(clip_id=['a', 'b'], label=['x', 'y'], p_x=[.5, .5], p_y=[.5, .5]))
    p.to_parquet(at/'p.parquet')
    p.to_csv(at/'p.csv', index=False)
    open_store, open_packs = FrameStore(frames), streaming.PackedStore(at/'packs')
    open_features, read = FeatureStore(at/'features', open_store), config.read_config(at/'model')
    index = pd.DataFrame(dict(clip_id=['clip00001'], bytes=[1], sha256=['']))
    return dict(
        store=lambda: FrameStore(frames), clip=lambda: open_store['clip00001'], pack=lambda: streaming.PackedStore(at/'packs'),
        packed=lambda: open_packs['clip00001'], shard=lambda: list(shards.read_shard(shard)),
        features=lambda: FeatureStore(at/'features', open_store), feature=lambda: open_features['clip00000'],
        model=lambda: config.read_model(at/'model'), card=lambda: config.read_config(at/'model'),
        weights=lambda: config.load_model(at/'model', read), pretrained=lambda: weights.read_weights(at/'w.npz'),
        checkpoint=lambda: checkpoints.load_checkpoint(at/'checkpoint.safetensors', None, 'k'),
        predictions=lambda: predictions.read_predictions(at/'p.parquet'),
        finished=lambda: runs._finished(at/'model', at/'said', 0, 'k'),
        packing=lambda: list(shards._samples(frames, index, '.npy')),
        note=lambda: store._valid_note(frames, 'clip00001', Path(__file__), dict(bytes=1, sha256=''), open_store.params))


PLACES = ('store clip pack packed shard features feature model card weights pretrained checkpoint predictions finished packing note').split()


@pytest.mark.parametrize('code,says', [(errno.EMFILE, 'too many files open'), (errno.ENFILE, 'too many files open'), (errno.ENOMEM, 'memory ran out'),
                                       (errno.EIO, 'input/output error'), (errno.EACCES, 'permission denied'), (errno.ESTALE, 'stale')],
                         ids=lambda v: errno.errorcode.get(v, '') if isinstance(v, int) else '')
@pytest.mark.parametrize('place', PLACES)
def test_an_error_of_the_system_is_not_called_damage(things, monkeypatch, place, code, says):
    with monkeypatch.context() as m:
        failing(m, code)
        try: answer = things[place]()
        except StudyError as e: answer = e
    assert isinstance(answer, StudyError), f'{place}: {answer!r}'
    said = str(answer)
    assert says in said and '\n' not in said
    assert not any(w in said for w in ('damaged', 'gone', 'no finished', 'no trained', '01_frames', 'not the weights', 'cannot be read as'))


def test_a_video_that_cannot_be_opened_is_still_a_video(tmp_path, monkeypatch):
    "Its reason would be final: the clip would never be tried again"
    import av
    from kinetics_dance.video.decoding import open_video
    (tmp_path/'a.mp4').write_bytes(b'\0'*100)
    def fail(*args, **kwargs): raise av.error.OSError(errno.EMFILE, 'Too many open files', 'a.mp4')
    monkeypatch.setattr(av, 'open', fail)
    with pytest.raises(OSError, match='Too many open files'):
        with open_video(tmp_path/'a.mp4'): pass


def test_predictions_of_fewer_clips_are_not_written(noise, tmp_path):
    from kinetics_dance.evaluation.perturbations import write_predictions
    clips = Clips(FrameStore(noise[0]), noise[1].assign(group='g'), sorted(noise[1].label.unique()), 8, (48, 64))
    with pytest.raises(StudyError, match='59 predictions of 60 clips'): write_predictions(tmp_path/'p.parquet', clips, np.full((59, 3), 1/3))
    assert not (tmp_path/'p.parquet').exists()
