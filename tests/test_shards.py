"Shards as a user meets them: packed by the command line, trained from, interrupted, damaged, of other frames."
import json, signal, subprocess, sys, tarfile
import pandas as pd, pytest, torch, yaml
import preloaded
from conftest import ROOT, things
from kinetics_dance.core.base import StudyError
from test_training import copy, settings, tiny   # noqa: F401  a study of two dances, nothing trained

pytest.importorskip('webdataset', reason='shards need webdataset')


def pack(runs, shard_mb=1):
    from kinetics_dance.loading.shards import pack_store
    return pack_store(runs/'tiny'/'frames', runs/'tiny'/'packs', shard_mb, log=None)


@pytest.fixture(scope='module')
def packed(tiny, tmp_path_factory):  # noqa: F811
    runs = copy(tiny, tmp_path_factory.mktemp('packed')/'r')
    return runs, pack(runs)


def with_videos(tiny, runs):  # noqa: F811
    "The videos of the study, too, and where they lie"
    from kinetics_dance.clips.table import ClipTable
    subprocess.run(['cp', '-a', tiny/'tiny'/'videos', runs/'tiny'], check=True)
    table = ClipTable(runs/'tiny'/'clips.sqlite')
    table.update([dict(clip_id=f.stem, path=f'videos/{f.name}') for f in things(runs/'tiny'/'videos')])
    return table.frame()


def loaders(store, runs, **changes):
    from kinetics_dance.loading.dataloader import ClipDataLoaders
    from kinetics_dance.training.study_files import study_clips
    return ClipDataLoaders.from_store(store, study_clips(runs/'tiny'), n_frames=4, bs=3, **changes)


def test_training_from_shards(packed):
    from kinetics_dance.loading.reader import FrameStore
    from kinetics_dance.training.runs import train_run
    runs, index = packed
    assert len(index['shards']) > 1
    card = train_run('per_frame', settings(runs, epochs=2, packed=True, seeds=[7]), 7)
    assert card['recipe']['packed'] and card['stored'] == FrameStore(runs/'tiny'/'frames').params
    before = card['key']
    assert train_run('per_frame', settings(runs, epochs=2, packed=True, seeds=[7]), 7) == card
    assert train_run('per_frame', settings(runs, epochs=2, seeds=[7]), 7)['key'] != before, 'other batches, another unit'
    # of frames/ a training from shards needs only what names the clips
    for f in things(runs/'tiny'/'frames'):
        if f.name not in ('store.json', 'index.parquet'): f.rename(runs/f.name)
    try: train_run('per_frame', settings(runs, epochs=1, packed=True, seeds=[8]), 8)
    finally:
        for f in runs.iterdir():
            if f.is_file(): f.rename(runs/'tiny'/'frames'/f.name)


@pytest.mark.parametrize('compression', ['none', 'jpeg'])
def test_the_same_clips_in_other_company(tiny, tmp_path, compression):  # noqa: F811
    from kinetics_dance.loading.reader import FrameStore
    from kinetics_dance.loading.store import build_store
    from kinetics_dance.loading.streaming import PackedStore
    runs = copy(tiny, tmp_path/'r')
    if compression == 'jpeg':
        build_store(with_videos(tiny, runs), runs/'tiny'/'frames', n_frames=8, size=(48, 64), jobs=1, compression='jpeg', log=lambda s: None)
    pack(runs)
    a, b = (loaders(s, runs, color_jitter=0.).train for s in (FrameStore(runs/'tiny'/'frames'), PackedStore(runs/'tiny'/'packs')))
    for _ in range(2):
        seen = [{c: x for k, (xs, _) in enumerate(dl) for c, x in zip(dl.batch_ids(k), xs)} for dl in (a, b)]
        assert len(seen[0]) == len(seen[1]) == 9 and len(set(seen[0]) & set(seen[1])) >= 8    # ten clips in batches of three
        assert all(torch.equal(x, seen[1][c]) for c, x in seen[0].items() if c in seen[1])
    # single clips, too, as validation and predictions ask for them
    assert torch.equal(*(torch.cat([x for x, _ in loaders(s, runs).valid]) for s in (a.clips.store, b.clips.store)))
    assert not b.clips.store.held


def test_an_epoch_goes_on_where_it_was_in_another_process(packed):
    from kinetics_dance.loading.streaming import PackedStore
    runs, _ = packed
    dl = loaders(PackedStore(runs/'tiny'/'packs'), runs).train
    whole = [x for _ in range(2) for x, _ in dl]
    code = f'''
import sys; sys.path.insert(0, {str(ROOT/'tests')!r})
import json, pathlib, torch
from test_shards import loaders
from kinetics_dance.loading.streaming import PackedStore
dl = loaders(PackedStore({str(runs/'tiny'/'packs')!r}), pathlib.Path({str(runs)!r})).train
dl.load_state(json.loads(sys.argv[1]))
print(json.dumps([float(x.double().sum()) for x, _ in dl]))'''
    dl = loaders(PackedStore(runs/'tiny'/'packs'), runs).train
    list(dl)
    for _ in zip(range(1), dl): pass      # one batch of the second epoch
    state = json.dumps(dl.state())
    out = preloaded.run([sys.executable, '-W', 'ignore', '-c', code, state], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(state) == dict(epoch=1, step=1)
    assert json.loads(out.splitlines()[-1]) == [float(x.double().sum()) for x in whole[4:]]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_training_goes_on_in_the_middle_of_an_epoch(packed, monkeypatch, workers):
    "The unit that was interrupted and the one that was not: the same bytes"
    from kinetics_dance.training import checkpoints, runs as training_runs
    runs, _ = packed
    folder, said = runs/'tiny'/'models'/'per_frame'/'seed9', runs/'tiny'/'predictions'/'per_frame'/'seed9.parquet'
    how = settings(runs, epochs=2, packed=True, workers=workers, seeds=[9]), 9
    def made(): return (folder/'model.safetensors').read_bytes(), (folder/'history.csv').read_bytes(), said.read_bytes()
    def again(): (folder/'config.json').unlink(missing_ok=True)
    again()
    training_runs.train_run('per_frame', *how)
    whole, seen = made(), []
    class Dies(checkpoints.Checkpoint):
        def __init__(self, *args): super().__init__(*args, every=0)
        def after_batch(self):
            super().after_batch()
            if self.training: seen.append((self.epoch, self.dl.step))
            if seen[-1:] == [(1, 1)] and seen.count((1, 1)) == 1: raise KeyboardInterrupt
    monkeypatch.setattr(training_runs, 'Checkpoint', Dies)
    again()
    with pytest.raises(KeyboardInterrupt): training_runs.train_run('per_frame', *how)
    before = len(seen)
    training_runs.train_run('per_frame', *how)
    assert seen[before:] == [(1, 2)] and made() == whole, "of its two steps one was left"


@pytest.mark.parametrize('size', [2, 3])
def test_processes_share_the_shards(packed, size):
    from kinetics_dance.loading.streaming import PackedStore
    runs, _ = packed
    seen, opened = [], []
    for rank in range(size):
        dl = loaders(PackedStore(runs/'tiny'/'packs'), runs, color_jitter=0.).train
        dl.part, was = (rank, size), dl._stream
        dl._stream = lambda wanted, was=was: (opened.append((rank, got[0])) or got for got in was(wanted))
        seen.append([(x, y) for x, y in dl])
        ids = [dl.batch_ids(k) for k in range(len(dl))]
    assert len({c for b in ids for c in b}) == sum(map(len, ids)) == 9
    assert len({c for _, c in opened}) == len(opened), 'no clip is read by two'
    for parts in zip(*seen): assert sum(len(x) for x, _ in parts) == 3 and all(torch.equal(y, parts[0][1]) for _, y in parts)


def test_a_pack_of_other_frames_is_refused(tiny, tmp_path):  # noqa: F811
    from kinetics_dance.training.runs import train_run
    runs = copy(tiny, tmp_path/'r')
    with pytest.raises(StudyError, match=r'no finished frame store here|no finished pack'): train_run('per_frame', settings(runs, packed=True), 0)
    pack(runs)
    index = runs/'tiny'/'frames'/'index.parquet'
    pd.read_parquet(index).iloc[:-1].to_parquet(index, index=False)
    with pytest.raises(StudyError, match='packed: tiny/packs was made from other frames; kinetics-dance frames --pack') as e:
        train_run('per_frame', settings(runs, packed=True), 0)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('how', ['cut', 'gone', 'another name', 'a program'])
def test_damaged_shards(tiny, tmp_path, how):  # noqa: F811
    from kinetics_dance.loading.streaming import PackedStore
    runs = copy(tiny, tmp_path/'r')
    shard = runs/'tiny'/'packs'/pack(runs)['shards'][0]['name']
    if how == 'cut': shard.write_bytes(shard.read_bytes()[:2000])
    elif how == 'gone': shard.unlink()
    else:
        name = '../../etc/passwd' if how == 'another name' else 'clip.pkl'
        with tarfile.open(shard, 'w') as tar: tar.add(runs/'tiny'/'clips.sqlite', name)
    with pytest.raises(StudyError, match=rf'^{shard.name}: ') as e: list(loaders(PackedStore(runs/'tiny'/'packs'), runs).train)
    assert '\n' not in str(e.value)
    if how == 'gone':        # made again, and nothing else is
        others = {p.name: p.stat().st_mtime_ns for p in shard.parent.glob('*.tar')}
        pack(runs)
        assert len(list(loaders(PackedStore(runs/'tiny'/'packs'), runs).train)) == 3
        assert all((shard.parent/n).stat().st_mtime_ns == t for n, t in others.items())


def test_a_killed_packing_leaves_whole_shards(tiny, tmp_path):  # noqa: F811
    from kinetics_dance.loading.shards import read_shard
    runs = copy(tiny, tmp_path/'r')
    code = f'''
import sys, time; from pathlib import Path
from kinetics_dance.loading import shards
was = shards._samples
def slow(*args):
    for s in was(*args):
        yield s
        print('a clip', flush=True); time.sleep(.05)
shards._samples = slow
shards.pack_store({str(runs/'tiny'/'frames')!r}, {str(runs/'tiny'/'packs')!r}, 1)'''
    p = preloaded.Popen([sys.executable, '-W', 'ignore', '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for k, _ in enumerate(iter(p.stdout.readline, '')):
        if k == 15: p.send_signal(signal.SIGKILL); break       # in the second shard
    p.wait(30); p.stdout.close()
    packs = runs/'tiny'/'packs'
    whole = {f.name: f.read_bytes() for f in packs.glob('[!.]*.tar')}
    assert p.returncode == -signal.SIGKILL and len(whole) == 1 and not (packs/'index.json').exists()
    for name in whole: assert list(read_shard(packs/name))
    index = pack(runs)
    assert {n: (packs/n).read_bytes() for n in whole} == whole and not list(packs.glob('.*.tar')), 'what was half written is removed'
    assert sum(len(s['clips']) for s in index['shards']) == 18


def test_the_command_packs(tiny, tmp_path):  # noqa: F811
    runs = copy(tiny, tmp_path/'r')
    with_videos(tiny, runs)
    (tmp_path/'tiny.yaml').write_text(yaml.safe_dump(dict(study='tiny', runs=str(runs), n_frames=8, frame_height=48, frame_width=64, clip_frames=4)))
    line = [sys.executable, '-W', 'ignore', '-m', 'kinetics_dance.study.cli', 'frames', '--study', tmp_path/'tiny.yaml', '--pack', '--shard-mb', '1', '--json']
    p = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0 and json.loads(p.stdout) == {'ok': 18}, p.stderr
    index = json.loads((runs/'tiny/packs/index.json').read_text())
    assert sorted(c[0] for s in index['shards'] for c in s['clips']) == sorted(p.stem for p in (runs/'tiny/frames').glob('upload*.npy'))
    assert f"18 clips in {len(index['shards'])} shards" in p.stderr
