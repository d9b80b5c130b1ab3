"""What a tracker writes, read back; offline for real; and that nothing it does can hurt a training."""
import contextlib, importlib.util, json, os, resource, socket, struct, threading, time, warnings
import numpy as np, pandas as pd, psutil, pytest, torch
from torch import nn
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from kinetics_dance.synthetic import uploads, dancers
from kinetics_dance.training import tracking
from kinetics_dance.training.checkpoints import Checkpoint, load_checkpoint
from kinetics_dance.core.base import StudyError
from kinetics_dance.loading.reader import FrameStore
from kinetics_dance.loading.store import build_store
from kinetics_dance.loading.dataloader import ClipDataLoaders
from kinetics_dance.training.tracking import confusion_counts, make_tracker, prediction_table
from kinetics_dance.training.learner import fit, make_learner
from conftest import ROOT

OURS = ('WANDB_ERROR_REPORTING', 'WANDB_SILENT', 'WANDB_DATA_DIR', 'WANDB_CACHE_DIR')     # what a tracker sets where the user has not
CLASSES = ['tango', 'waltz']
SAID = pd.DataFrame([('c1', 'tango', 'test', .7, .3), ('c2', 'tango', 'test', .2, .8), ('c3', 'waltz', 'test', .1, .9), ('c4', 'waltz', 'valid', .4, .6)],
                    columns=['clip_id', 'label', 'split', 'p_tango', 'p_waltz'])
PARAMS = dict(lr=.01, crop=[44, 60], flip=False, study='toy')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    d = tmp_path_factory.mktemp('data')
    for k, step in enumerate(('round', 'bounce')): uploads.write_video(d/f'{k}.mp4', dancers.render_clip(step, 0, 0))
    table = pd.DataFrame([(f'c{n}{k}', f'{k}.mp4', 'ab'[k], 'train' if n < 3 else 'valid') for n in range(4) for k in (0, 1)],
                         columns=['clip_id', 'path', 'label', 'split'])
    build_store(table, d/'frames', n_frames=6, size=(48, 64), jobs=1, log=lambda line: None)
    return FrameStore(d/'frames'), table


class Toy(nn.Module):
    def __init__(self): super().__init__(); self.lin = nn.Linear(3, 2)
    def forward(self, x): return self.lin(x.mean((1, 3, 4)))


class Cut(Callback):
    "Kills a training in the middle of an epoch"
    order = 90
    def __init__(self, epoch, act=None): self.at, self.act = epoch, act
    def after_batch(self):
        if self.epoch == self.at and self.training and self.iter == 1: (self.act or self.stop)()
    def stop(self): raise KeyboardInterrupt


def train(data, kind, folder, cut=None, act=None, epochs=4):
    "A unit as the library trains one; returns history, weights and tracker"
    set_seed(0, reproducible=True)
    tracker = make_tracker(kind, folder/'tracking', 'toy', 3, PARAMS)
    learn = make_learner(Toy(), ClipDataLoaders.from_store(*data, n_frames=4, bs=2))
    past = load_checkpoint(folder/'checkpoint.safetensors', learn, 'k') or []
    history = fit(learn, epochs, 1e-2, start=len(past), past=past, cbs=[Checkpoint(folder/'checkpoint.safetensors', 'k'), *tracker.callbacks,
                                                                       *([Cut(cut, act)] if cut is not None else [])])
    tracker.finish(SAID, CLASSES)
    return history, learn.model.state_dict(), tracker


def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    "A user who never logged in, and a server that takes every call that would leave this machine; yields the calls"
    calls, server = [], socket.create_server(('127.0.0.1', 0))
    def listen():
        while True:
            try: c, _ = server.accept()
            except OSError: return
            calls.append(c.recv(200)); c.close()
    threading.Thread(target=listen, daemon=True).start()
    url = f'http://127.0.0.1:{server.getsockname()[1]}'
    for k in ('WANDB_MODE', 'WANDB_API_KEY', 'NO_PROXY', 'no_proxy', *OURS): monkeypatch.delenv(k, raising=False)
    for k in ('WANDB_BASE_URL', 'HTTP_PROXY', 'HTTPS_PROXY', 'http_proxy', 'https_proxy', 'ALL_PROXY'): monkeypatch.setenv(k, url)
    for k in ('HOME', 'WANDB_CONFIG_DIR', 'NETRC'): monkeypatch.setenv(k, str(tmp_path/'home'/k))
    (tmp_path/'home'/'HOME').mkdir(parents=True)
    yield calls
    for k in OURS: os.environ.pop(k, None)
    server.shutdown(socket.SHUT_RDWR); server.close()


def read_wandb(path):
    "Records of a .wandb file: blocks of 32 KiB of pieces (checksum, length, kind), as in the log format of LevelDB; protobuf inside"
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, part, out = path.read_bytes(), 7, b'', []
    assert data[:4] == b':W&B'
    while at < len(data):
        if (left := 32768 - at % 32768) < 7: at += left; continue
        _, n, kind = struct.unpack('<IHB', data[at:at+7])
        part = (part if kind in (3, 4) else b'') + data[at+7:at+7+n]; at += 7 + n
        if kind in (1, 4): out.append(Record.FromString(part))
    return out


def items(record): return {i.key or '.'.join(i.nested_key): json.loads(i.value_json) for i in record}


def test_tensorboard(data, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    plain, weights, _ = train(data, 'none', tmp_path/'plain')
    for cut in (1, 3):
        with pytest.raises(KeyboardInterrupt): train(data, 'tensorboard', tmp_path/'cut', cut)
    history, again, _ = train(data, 'tensorboard', tmp_path/'cut')
    assert same(weights, again) and history.equals(plain)
    at = tmp_path/'cut/tracking/tensorboard/toy'
    assert [p.name for p in at.iterdir()] == ['seed3']                                 # one run, though it was cut twice
    e = EventAccumulator(str(at/'seed3'), size_guidance=dict(tensors=0)).Reload()
    for k in ('train_loss', 'valid_loss', 'top1'):
        assert [s.step for s in e.Scalars(k)] == [0, 1, 2, 3] and np.allclose([s.value for s in e.Scalars(k)], plain[k], rtol=1e-6)
    assert len(e.Scalars('lr')) == 4 and e.Scalars('score/test')[0].value == pytest.approx(2/3)
    text = lambda tag: e.Tensors(f'{tag}/text_summary')[-1].tensor_proto.string_val[0].decode()
    assert '| crop | [44, 60] |' in text('parameters') and '| study | toy |' in text('parameters')
    assert set(e.Tags()['images']) == {'confusion/test', 'confusion/valid'}
    assert '| tango | 1 | 1 |\n| waltz | 0 | 1 |' in text('confusion/test')
    assert '| c2 | tango | waltz | 0.8 |' in text('predictions/test') and '| c4 | waltz | waltz | 0.6 |' in text('predictions/valid')
    # trained anew, it is another run, in place of the old one
    (tmp_path/'cut/checkpoint.safetensors').unlink(missing_ok=True)
    train(data, 'tensorboard', tmp_path/'cut', epochs=2)
    assert [s.step for s in EventAccumulator(str(at/'seed3')).Reload().Scalars('top1')] == [0, 1]


def test_tensorboard_of_a_training_that_was_not_watched_from_the_start(data, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    with pytest.raises(KeyboardInterrupt): train(data, 'none', tmp_path, 2)
    history, *_ = train(data, 'tensorboard', tmp_path)
    e = EventAccumulator(str(tmp_path/'tracking/tensorboard/toy/seed3')).Reload()
    assert np.allclose([s.value for s in e.Scalars('train_loss')], history.train_loss, rtol=1e-6)


def test_wandb_offline(data, tmp_path, nowhere, capfd):
    pytest.importorskip('wandb')
    plain, weights, _ = train(data, 'none', tmp_path/'plain')
    with pytest.raises(KeyboardInterrupt): train(data, 'wandb', tmp_path/'cut', 2)
    history, again, tracker = train(data, 'wandb', tmp_path/'cut')
    assert same(weights, again) and history.equals(plain) and not tracker.broken
    assert not nowhere, nowhere                                                        # nothing went out, nobody was asked for a key
    assert not (said := capfd.readouterr()).out + said.err
    runs = sorted((tmp_path/'cut/tracking/wandb').glob('offline-run-*'))
    assert len(runs) == 2 and len({p.name.rsplit('-')[-1] for p in runs}) == 1         # two parts of one run
    for _ in range(100):                                                               # wandb's process writes the last lines a little later
        records = [r for p in runs for r in read_wandb(next(p.glob('*.wandb')))]
        if [r.WhichOneof('record_type') for r in records].count('exit') == 2: break
        time.sleep(.2)
    rows = pd.DataFrame([items(r.history.item) for r in records if r.WhichOneof('record_type') == 'history'])
    rows = rows.dropna(subset='lr').drop_duplicates('epoch', keep='last').sort_values('epoch')
    assert rows.epoch.tolist() == [0, 1, 2, 3] and np.allclose(rows[['train_loss', 'valid_loss', 'top1']], plain[['train_loss', 'valid_loss', 'top1']])
    run = next(r.run for r in records if r.WhichOneof('record_type') == 'run')
    config = items(run.config.update)
    assert {k: config[k] for k in PARAMS} == PARAMS and (run.display_name, run.run_group) == ('toy seed 3', 'toy')
    tables = {p.name: json.loads(p.read_text()) for p in runs[-1].rglob('*.table.json')}
    find = lambda start: next(v for k, v in tables.items() if k.startswith(start))
    assert ['test', 'c2', 'tango', 'waltz', .8] in find('predictions')['data'] and len(find('predictions')['data']) == 4
    assert sorted(find('confusion_test')['data']) == [['tango', 'tango', 1], ['tango', 'waltz', 1], ['waltz', 'tango', 0], ['waltz', 'waltz', 1]]
    assert not [p for p in (tmp_path/'home').rglob('*') if p.is_file()]                # nothing outside of the study's folder
    noted = ' '.join(p.read_text(errors='ignore') for p in runs[-1].rglob('wandb-metadata.json'))
    assert socket.gethostname() not in noted and str(ROOT) not in noted


def test_service_dies(data, tmp_path, nowhere):
    "The process that writes for wandb is killed in the second epoch"
    wandb = pytest.importorskip('wandb')
    _, weights, _ = train(data, 'none', tmp_path/'plain')
    killed = []
    def kill():
        for p in psutil.Process().children(recursive=True):
            if 'wandb-core' in ' '.join(p.cmdline()): p.kill(); p.wait(10); killed.append(p.pid)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        history, again, tracker = train(data, 'wandb', tmp_path/'dies', 1, kill)
    assert killed and tracker.broken and same(weights, again) and len(history) == 4
    with contextlib.suppress(Exception): wandb.teardown()                              # else it complains when Python ends
    assert len([w for w in heard if 'WandbTracker failed and is off for toy, seed 3' in str(w.message)]) == 1


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')     # the writer's thread says so too
def test_disk_full(tmp_path):
    "No file may grow beyond 20 kB: every later write fails, as on a full disk"
    pytest.importorskip('tensorboard')
    t, before = make_tracker('tensorboard', tmp_path, 'm', 0, {}), resource.getrlimit(resource.RLIMIT_FSIZE)
    t.begin()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
            for e in range(500): t.epoch(dict(epoch=e, train_loss=1., lr=.1))
            t.finish(SAID, CLASSES)
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert t.broken and len(said := [str(w.message) for w in heard if w.category is RuntimeWarning]) == 1
    assert said[0].startswith('TensorBoardTracker failed and is off for m, seed 0; the training goes on (OSError: [Errno 27]')


@pytest.mark.parametrize('kind', ['wandb', 'tensorboard'])
def test_absent_package(kind, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == kind else find(name, *a))
    with pytest.raises(StudyError) as e: make_tracker(kind, tmp_path, 'm', 0, {})
    assert str(e.value) == f"track: {kind} needs the package {kind}, which is not installed: pip install 'kinetics_dance[track]', or set track: none"
    assert not list(tmp_path.iterdir())


def test_tables_of_many_classes():
    rng = np.random.default_rng(0)
    classes = [f'class {k}' for k in range(15)]
    p = pd.DataFrame(rng.dirichlet(np.ones(15), 200), columns=[f'p_{c}' for c in classes])
    said = p.assign(clip_id=[f'c{k}' for k in range(200)], label=rng.choice(classes[:14], 200), split='test')
    table = prediction_table(said)
    m = confusion_counts(table, classes)
    assert m.shape == (15, 15) and m.to_numpy().sum() == 200 and m.loc['class 14'].sum() == 0
    assert np.trace(m) == (table.label == table.predicted).sum()
    tracking.draw_confusion(m, 'many').savefig('/dev/null', format='png')
