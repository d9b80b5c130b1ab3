"Training as a user meets it: kills, units alone, what cannot be right. Small: two dances, a few clips, two epochs."
import json, os, signal, subprocess, sys, time
import numpy as np, pandas as pd, pytest, yaml
import preloaded
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.core.base import StudyError
from conftest import ROOT, tiny_study
from report.common import study_files

TINY = dict(study='tiny', n_frames=8, frame_height=48, frame_width=64, seeds=[0, 1], epochs=3, lr=[.002], clip_frames=4, batch_size=4, crop_height=44, crop_width=60)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory): return tiny_study(tmp_path_factory.mktemp('runs'), ('windmill', 'round'))


def copy(tiny, to):
    "The same study elsewhere: frames and table, nothing that was trained"
    (to/'tiny').mkdir(parents=True)
    for f in ('clips.sqlite', 'frames'): subprocess.run(['cp', '-a', tiny/'tiny'/f, to/'tiny'], check=True)
    return to


def settings(runs, **changes): return TINY | dict(runs=str(runs)) | changes


def start(runs, file, *args):
    "Train from a process of its own, as the command line does"
    code = f'from kinetics_dance.study.launch import train_study; train_study({str(file)!r}, {", ".join(args)}, log=lambda s: print(s, flush=True))'
    return preloaded.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                            env=os.environ | {'OMP_NUM_THREADS': '1', 'KINETICS_DANCE_PROGRESS_SECONDS': '0'})


def test_killed_training_ends_with_the_same_bytes(tiny, tmp_path):
    file = tmp_path/'tiny.yaml'
    for name in ('whole', 'cut'):
        file = tmp_path/name/'tiny.yaml'
        copy(tiny, tmp_path/name)
        file.write_text(yaml.safe_dump(settings(tmp_path/name, epochs=5, seeds=[0], mixup=.2)))
    p = start(tmp_path, tmp_path/'whole'/'tiny.yaml', "model='cnn_lstm'", 'seed=0')
    out = p.communicate(timeout=300)[0]
    assert p.returncode == 0, out
    kills = 0
    while kills < 2:     # once after the second epoch, once after the fourth
        p = start(tmp_path, tmp_path/'cut'/'tiny.yaml', "model='cnn_lstm'", 'seed=0')
        for line in p.stdout:
            if f'{2*kills+2} of 5 epochs' in line:
                time.sleep(.05)
                p.send_signal(signal.SIGKILL); break
        p.wait(60); p.stdout.close()
        assert p.returncode == -signal.SIGKILL, 'the training ended before it could be killed'
        kills += 1
    p = start(tmp_path, tmp_path/'cut'/'tiny.yaml', "model='cnn_lstm'", 'seed=0')
    out = p.communicate(timeout=300)[0]
    assert p.returncode == 0 and '1 of 5 epochs' not in out and '5 of 5 epochs' in out, out     # it went on, and did not begin again
    a, b = (tmp_path/n/'tiny' for n in ('whole', 'cut'))
    for f in ('models/cnn_lstm/seed0/model.safetensors', 'models/cnn_lstm/seed0/history.csv', 'predictions/cnn_lstm/seed0.parquet',
              'predictions/cnn_lstm/shuffled/seed0.parquet'):
        assert (a/f).read_bytes() == (b/f).read_bytes(), f
    assert not list((b/'models').rglob('checkpoint*')), 'the checkpoint of a finished unit is litter'


def test_unit_alone_is_skipped_when_done(tiny, tmp_path):
    from kinetics_dance.study.launch import train_study
    runs = copy(tiny, tmp_path/'r')
    (tmp_path/'tiny.yaml').write_text(yaml.safe_dump(settings(runs, epochs=1)))
    said = []
    card, = train_study(tmp_path/'tiny.yaml', 'per_frame', 1, log=said.append)
    assert [p.name for p in (runs/'tiny/models/per_frame').glob('seed?')] == ['seed1']
    said.clear()
    assert train_study(tmp_path/'tiny.yaml', 'per_frame', 1, log=said.append) == [card] and not said
    # a lost file of predictions is made again, and is the same
    f = runs/'tiny/predictions/per_frame/frozen/seed1.parquet'
    before = f.read_bytes(); f.unlink()
    train_study(tmp_path/'tiny.yaml', 'per_frame', 1)
    assert f.read_bytes() == before


def test_every_probe_leaves_a_file_that_can_be_compared(tiny, tmp_path):
    from kinetics_dance.evaluation.predictions import load_predictions
    from kinetics_dance.training.runs import train_run
    runs = copy(tiny, tmp_path/'r')
    for m in ('per_frame', 'cnn_lstm', 'video_transformer'): train_run(m, settings(runs, epochs=1), 0)
    at = runs/'tiny'
    assert set(load_predictions(at)) == {'per_frame', 'cnn_lstm', 'video_transformer'}
    probes = {p.name for p in (at/'predictions/cnn_lstm').iterdir() if p.is_dir()}
    assert probes == {'shuffled', 'reversed', 'frozen', 'halved', 'half_speed', 'double_speed', 'consecutive', 'one_replaced', 'mixed',
                      'frames_1', 'frames_2', 'frames_8', 'over_time'}
    df = pd.read_parquet(at/'predictions/cnn_lstm/frames_2/seed0.parquet')
    assert df.attrs == dict(model='cnn_lstm', seed=0, frames=2, probe='frames_2', pretraining='none')
    # a vote of single frames knows no order; one frame repeated is one frame
    p = lambda m, probe='': pd.read_parquet(at/'predictions'/m/probe/'seed0.parquet').query('split == "test"').filter(regex='^p_').to_numpy()
    assert np.abs(p('per_frame', 'shuffled')-p('per_frame')).max() < 1e-6 and np.abs(p('per_frame', 'reversed')-p('per_frame')).max() < 1e-6
    assert np.abs(p('cnn_lstm', 'reversed')-p('cnn_lstm')).max() > 1e-5
    over = pd.read_parquet(at/'predictions/cnn_lstm/over_time/seed0.parquet')
    assert set(over.frame) == {1, 2, 3, 4} and np.abs(over[over.frame == 4].filter(regex='^p_').to_numpy()-p('cnn_lstm')).max() < 1e-6


def test_learning_rate_is_chosen_on_valid_and_recorded(tiny, tmp_path):
    from kinetics_dance.training.study_files import learning_rates
    from kinetics_dance.training.runs import train_run
    runs = copy(tiny, tmp_path/'r')
    card = train_run('per_frame', settings(runs, lr=[1e-6, .002, 9.], allow_edge_lr=True, lr_epochs=2, epochs=1), 0)
    tried = learning_rates(runs/'tiny', 'per_frame')
    assert tried.lr.tolist() == [1e-6, .002, 9.] and tried.chosen.sum() == 1
    assert card['recipe']['lr'] == tried.lr[tried.chosen].item() == tried.lr[tried.valid_loss.idxmin()]


def test_frozen_features_take_the_same_road(tiny, tmp_path):
    from safetensors.torch import load_file
    import torch
    from kinetics_dance.evaluation.predictions import load_predictions
    from kinetics_dance.training.runs import make_model, train_run
    runs = copy(tiny, tmp_path/'r')
    for m in ('per_frame', 'cnn_lstm', 'video_transformer'): card = train_run(m, settings(runs, epochs=2, train='head'), 0)
    assert set(load_predictions(runs/'tiny')) == {'per_frame', 'cnn_lstm', 'video_transformer'}
    assert len(list((runs/'tiny/features').glob('*/features.json'))) == 1, 'three models with one picture network share its features'
    torch.manual_seed(0)    # the body is what it was before training
    from fastai.torch_core import set_seed
    set_seed(0, reproducible=True)
    fresh = make_model(card['model'], card['arguments'], 2)
    got = load_file(runs/'tiny/models/video_transformer/seed0/model.safetensors')
    assert all(torch.equal(v, got[k]) for k, v in fresh.state_dict().items() if k.startswith('features.'))
    assert any(not torch.equal(v, got[k]) for k, v in fresh.state_dict().items() if not k.startswith('features.'))


@pytest.mark.parametrize('changes,why', [
    (dict(device='cuda'), r'device: cuda was asked for.*set device: cpu'),
    (dict(device='mps'), r'device: mps was asked for.*set device: cpu'),
    (dict(clip_frames=64), r'clip_frames: 64 frames per clip, but the store holds 8'),
    (dict(crop_height=200), r'crop \(200, 60\) is larger than the stored frames'),
    (dict(backbone='resnet81'), r"backbone: 'resnet81'.*did you mean"),
    (dict(weights='no/such/file.npz'), r'no/such/file\.npz'),
    (dict(epochs=0), r'epochs: 0 is too small'),
    (dict(lr=[1e-3, 1e-3]), r'lr: .*different'),
    (dict(lstm_state='lats'), r"lstm_state: 'lats'.*did you mean 'last'"),
])
def test_what_cannot_be_right_is_said_before_anything_is_trained(tiny, changes, why):
    import torch
    from kinetics_dance.training.runs import train_run
    if changes.get('device') == 'cuda' and torch.cuda.is_available() or changes.get('device') == 'mps' and torch.backends.mps.is_available():
        pytest.skip('this machine has the device')
    with pytest.raises(StudyError, match=why) as e: train_run('cnn_lstm', settings(tiny, **changes), 7)
    assert '\n' not in str(e.value) and not (tiny/'tiny/predictions/cnn_lstm/seed7.parquet').exists()


def test_unknown_model_is_named_with_a_hint(tiny):
    from kinetics_dance.training.runs import train_run
    with pytest.raises(StudyError, match="model: 'r3d18' is none of .*did you mean 'r3d_18'"): train_run('r3d18', settings(tiny), 0)


@pytest.mark.parametrize('edit,why', [
    ("UPDATE clips SET label='round dancing'", 'the study has 1 class'),
    ("UPDATE clips SET split='test' WHERE label LIKE '%wind%' AND split='train'", 'has no training clip'),
    ("UPDATE clips SET split='train' WHERE split='valid'", 'the study has no valid clip'),
])
def test_clips_that_make_no_study(tiny, tmp_path, edit, why):
    import sqlite3
    from kinetics_dance.training.runs import train_run
    runs = copy(tiny, tmp_path/'r')
    with sqlite3.connect(runs/'tiny/clips.sqlite') as db:
        assert db.execute(edit.replace("'round dancing'", f"(SELECT label FROM clips LIMIT 1)")).rowcount
    with pytest.raises(StudyError, match=why): train_run('per_frame', settings(runs), 0)


def test_diverging_training_names_its_clips(tiny, tmp_path):
    from kinetics_dance.training.runs import train_run
    from kinetics_dance import per_frame
    import torch
    runs = copy(tiny, tmp_path/'r')

    class Broken(per_frame.PerFrame):
        def score(self, f): return super().score(f)*torch.tensor(float('nan'))
    Broken.__module__ = 'kinetics_dance.per_frame'
    old, per_frame.PerFrame = per_frame.PerFrame, Broken
    try:
        with pytest.raises(StudyError, match=r'per_frame, seed 0: loss is nan in epoch 0, batch 0, clips upload0.*lower lr'):
            train_run('per_frame', settings(runs), 0)
        with pytest.raises(StudyError, match='diverges with every learning rate'):
            train_run('per_frame', settings(runs, lr=[.001, .002], lr_epochs=1), 0)
    finally: per_frame.PerFrame = old


def test_settings_that_change_nothing_retrain_nothing(tiny, tmp_path):
    from kinetics_dance.training.runs import train_run
    runs = copy(tiny, tmp_path/'r')
    a = train_run('per_frame', settings(runs, epochs=1), 0)
    assert train_run('per_frame', settings(runs, epochs=1, workers=1), 0) == a
    assert train_run('per_frame', settings(runs, epochs=1, label_smoothing=.2), 0)['key'] != a['key']


def test_defaults_are_the_same_wherever_they_stand():
    "Parameter cells, recipe and constructors: a study from the command line is the study of the notebooks"
    import importlib, inspect
    from dataclasses import fields
    from kinetics_dance.training.recipe import Recipe
    from kinetics_dance.models.registry import MODELS
    from report.common import declared, load_nb
    from kinetics_dance.core.settings import defaults
    plain = lambda v: list(v) if isinstance(v, tuple) else v
    for stem, name in (('02_per_frame', 'per_frame'), ('03_cnn_lstm', 'cnn_lstm'), ('04_video_transformer', 'video_transformer')):
        cell = {k: v for k, v in declared(load_nb(ROOT/'nbs'/f'{stem}.ipynb')).items() if v is not None}
        assert cell == dict(study='demo', runs='runs', overrides={}), stem
        module, cls = MODELS[name].spec.split(':')
        cls = getattr(importlib.import_module(module), cls)
        own = {k: plain(p.default) for k, p in inspect.signature(cls).parameters.items()}
        assert {s: own[a] for a, s in cls.study_parameters.items()}.items() <= defaults().items(), stem
    assert {f.name: plain(f.default) for f in fields(Recipe)}.items() <= defaults().items()


@pytest.mark.parametrize('path', study_files(ROOT), ids=lambda p: p.stem)
def test_heads_of_a_study_are_of_one_size(path):
    from kinetics_dance.training.runs import model_sizes
    from kinetics_dance.core.settings import defaults
    head = model_sizes(defaults() | yaml.safe_load(path.read_text()), 15).set_index('model')['head']
    assert head.max() <= 2*head.min(), head.to_dict()
