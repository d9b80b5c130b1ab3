"Several processes train what one process trains: launched as a user launches them, on the CPU, with a handful of clips."
import json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, psutil, pytest, yaml
import preloaded
from conftest import ROOT
from test_training import copy, tiny   # noqa: F401  a study of two dances, nothing trained

pytest.importorskip('accelerate', reason='several processes need accelerate')
SETTINGS = dict(study='tiny', n_frames=8, frame_height=48, frame_width=64, seeds=[0], epochs=5, lr=[.0005, .001], allow_edge_lr=True, lr_epochs=1, clip_frames=4, batch_size=3, crop_height=44, crop_width=60,
                batch_norm='frozen', mixup=.2, balance=True)
TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
ACCELERATE = ['-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '3', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']


def study(tiny, at, **changes):  # noqa: F811
    "A copy of the study, and its file"
    copy(tiny, at)
    (at/'tiny.yaml').write_text(yaml.safe_dump(SETTINGS | dict(runs=str(at)) | changes))
    return at/'tiny.yaml'


def start(launch, file, *args, model='cnn_lstm', warm=True):
    env = {k: v for k, v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')}
    line = [sys.executable, *launch, '-m', 'kinetics_dance.train', '--study', str(file), '--model', model, '--seed', '0', *args]
    return (preloaded.Popen if warm else subprocess.Popen)(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=env | dict(OMP_NUM_THREADS='1', KINETICS_DANCE_PROGRESS_SECONDS='0', PYTHONPATH=str(ROOT), PYTHONWARNINGS='ignore'))


def done(p, code=0):
    out = p.communicate(timeout=240)[0]
    assert (p.returncode == 0) == (code == 0), out
    return out


def files(at): return {p.relative_to(at).as_posix(): p for f in ('models', 'predictions') for p in sorted((at/'tiny'/f).rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def two(tiny, tmp_path_factory):  # noqa: F811
    "The unit, made by two processes; and what they said"
    at = tmp_path_factory.mktemp('two')/'r'
    return at, done(start(TORCHRUN, study(tiny, at)))


def test_two_processes_make_the_unit_of_one(tiny, two, tmp_path):  # noqa: F811
    from kinetics_dance.study.launch import train_study
    at, said = two
    assert len(re.findall('5 of 5 epochs', said)) == 1, 'one of them speaks'
    card, = train_study(study(tiny, tmp_path/'r'), 'cnn_lstm', 0, log=None)
    one, other = files(tmp_path/'r'), files(at)
    assert set(one) == set(other) and not any('checkpoint' in f for f in one)
    theirs = json.loads((at/'tiny/models/cnn_lstm/seed0/config.json').read_text())
    assert theirs['recipe'] == card['recipe'] and theirs['key'] == card['key']     # the same learning rate, chosen by both; the same unit
    assert np.allclose(*(pd.read_csv(f['tiny/models/cnn_lstm/seed0/history.csv'])[['train_loss', 'valid_loss']] for f in (one, other)), atol=1e-4)
    tables = [f for f in one if f.endswith('.parquet')]
    assert len(tables) > 8
    for f in tables:     # every clip once, in the same order
        a, b = pd.read_parquet(one[f]), pd.read_parquet(other[f])
        assert a.attrs == b.attrs and a.clip_id.tolist() == b.clip_id.tolist()
        assert np.allclose(a.filter(regex='^p_'), b.filter(regex='^p_'), atol=1e-3), f


def test_a_killed_process_is_started_again_and_the_end_is_the_same(tiny, two, tmp_path):  # noqa: F811
    p = start([*TORCHRUN, '--max-restarts', '2'], study(tiny, tmp_path/'r'), warm=False)        # as a user starts it, from nothing
    said, killed = [], False
    for line in p.stdout:
        said.append(line)
        if '2 of 5 epochs' in line and not killed:
            time.sleep(.05)
            second, = (c for c in psutil.Process(p.pid).children(recursive=True) if c.environ().get('RANK') == '1')
            second.send_signal(signal.SIGKILL)
            killed = True
    p.wait(60); p.stdout.close()
    out = ''.join(said)
    assert killed and p.returncode == 0, out
    assert len(re.findall('1 of 5 epochs', out)) == 1 and '5 of 5 epochs' in out, 'it went on at the checkpoint\n'+out
    a, b = files(two[0]), files(tmp_path/'r')
    assert set(a) == set(b)
    for f in a:
        if f.endswith(('.safetensors', 'history.csv', '.parquet')): assert a[f].read_bytes() == b[f].read_bytes(), f


def test_three_processes_of_accelerate_make_the_same(tiny, two, tmp_path):  # noqa: F811
    done(start(ACCELERATE, study(tiny, tmp_path/'r')))
    # accelerate sets threads and affinities of its own, so the last digits may differ
    one, other = files(two[0]), files(tmp_path/'r')
    assert set(one) == set(other)
    for f in (f for f in one if f.endswith('.parquet')):
        a, b = pd.read_parquet(one[f]), pd.read_parquet(other[f])
        assert a.clip_id.tolist() == b.clip_id.tolist() and np.allclose(a.filter(regex='^p_'), b.filter(regex='^p_'), atol=1e-4), f


def test_two_processes_train_from_shards(tiny, tmp_path):  # noqa: F811
    pytest.importorskip('webdataset')
    from kinetics_dance.loading.shards import pack_store
    file = study(tiny, tmp_path/'r', epochs=1, lr=[.001], batch_norm='train')
    pack_store(tmp_path/'r/tiny/frames', tmp_path/'r/tiny/packs', 1, log=None)
    out = done(start(TORCHRUN, file, '--packed', '--json', model='per_frame'))
    card, = json.loads(next(line for line in out.splitlines() if line.startswith('[{')))
    assert card['recipe']['packed'] and out.count('"recipe"') == 1, 'one of them speaks'
    assert len(pd.read_parquet(tmp_path/'r/tiny/predictions/per_frame/seed0.parquet')) == 8


def test_what_cannot_be_shared_is_refused_in_one_line(tiny, tmp_path):  # noqa: F811
    out = done(start(TORCHRUN, study(tiny, tmp_path/'r', batch_size=1, mixup=0.)), 2)
    assert out.count('batch_size: 1 clips cannot be shared among 2 processes') == 1, out
    assert 'Traceback' not in out.split('ChildFailedError')[0].split('torch/distributed')[0]


def test_the_sbatch_script(tmp_path):
    "Sound as a script; and what it would start on two machines with eight GPUs each"
    script = ROOT/'recipes'/'train.sbatch'
    subprocess.run(['bash', '-n', script], check=True)
    for name, says in dict(scontrol='echo node7; echo node8', srun='echo "$@"').items():
        (tmp_path/name).write_text(f'#!/bin/bash\n{says}\n')
        (tmp_path/name).chmod(0o755)
    job = dict(STUDY='s.yaml', MODEL='cnn_lstm', SLURM_JOB_ID='12345', SLURM_JOB_NUM_NODES='2', SLURM_JOB_NODELIST='node[7-8]',
               SLURM_GPUS_ON_NODE='8', SLURM_CPUS_PER_TASK='64')
    run = lambda env: subprocess.run(['bash', script, '--packed'], env=dict(PATH=f"{tmp_path}:{os.environ['PATH']}") | env, capture_output=True, text=True)
    line = run(job).stdout
    for part in ('--nnodes 2', '--nproc-per-node 8', '--rdzv-endpoint node7:32345', '--seed 0 --packed', '-m kinetics_dance.train --study s.yaml --model cnn_lstm'):
        assert part in line, line
    without = run({k: v for k, v in job.items() if k != 'MODEL'})
    assert without.returncode and 'give MODEL' in without.stderr
    shellcheck = shutil.which('shellcheck', path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck: pytest.skip('the script runs as it should; whether shellcheck finds anything was not asked: it is not installed')
    subprocess.run([shellcheck, script], check=True)
