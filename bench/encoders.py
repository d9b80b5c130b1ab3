"""Frozen encoders: what a head's epoch on stored tokens costs beside the encoder's own look at the clips, and what storing costs beside looking.

    python bench/encoders.py [--clips 24] [--before CHECKOUT]

The encoder is a video transformer of VideoMAE's small size (16 frames of 224×224, 12 layers of 384 numbers) with random weights, saved and loaded as a real one is: speed does
not depend on what it has learned. Looking, storing and training the heads happen in the same run, one after the other in each of three rounds; medians. With --before (a folder that
holds another version of the project) the import of `kinetics_dance.inference` is timed in turns, that version and this one. Needs kinetics_dance[encoders] but for the import; about four minutes on one core."""
import argparse, os, statistics, subprocess, sys, tempfile, time, warnings
warnings.filterwarnings('ignore', category=FutureWarning)
from pathlib import Path
import numpy as np, pandas as pd, torch
from kinetics_dance.loading.reader import FrameStore, normalise
from kinetics_dance.loading.store import build_store
from kinetics_dance.models.encoder_heads import EncoderModel
from kinetics_dance.models.registry import HEADS
from kinetics_dance.synthetic import dancers, uploads
from kinetics_dance.training import frozen_features
from kinetics_dance.training.frozen_features import HeadOnly, build_features, feature_loaders
from kinetics_dance.training.learner import fit, make_learner
from kinetics_dance.training.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
SIZE, T = 224, 16


def clip_store(folder, n):
    "Frames of n rendered clips, and their table"
    rows = []
    for k in range(n):
        step = sorted(dancers.PAIRS)[k % 2]
        uploads.write_video(folder/f'{k}.mp4', dancers.render_clip(step, 0, k))
        rows.append(dict(clip_id=f'upload{k:04d}_000000_000003', path=f'{k}.mp4', label=step, group=f'upload{k}', split='train' if k < .8*n else 'valid'))
    build_store(pd.DataFrame(rows), folder/'frames', n_frames=T, size=(SIZE, SIZE), base=folder, jobs=1, log=lambda line: None)
    return FrameStore(folder/'frames'), pd.DataFrame(rows)


def random_encoder(folder):
    "A folder as save_pretrained leaves it"
    import transformers
    torch.manual_seed(0)
    net = transformers.VideoMAEModel(transformers.VideoMAEConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536))
    net.save_pretrained(folder)
    transformers.VideoMAEImageProcessor(size=dict(shortest_edge=SIZE), crop_size=dict(height=SIZE, width=SIZE)).save_pretrained(folder)
    return f'transformers:{folder}'


def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start


@torch.inference_mode()
def look(net, store, folder=None):
    "The encoder alone: each clip once, nothing kept"
    for c in store.clip_ids: net(normalise(torch.from_numpy(store.batch([c], None, None, None, (SIZE, SIZE)))))


def encoders(n, rounds=3):
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        store, table = clip_store(tmp, n)
        spec, classes = random_encoder(tmp/'encoder'), sorted(set(table.label))
        model = EncoderModel(len(classes), spec)
        seconds = dict(look=[], store=[])
        for k in range(rounds):
            seconds['look'].append(timed(lambda: look(model.looks, store)))
            seconds['store'].append(timed(lambda: build_features(model.looks, store, tmp/f'features{k}', (SIZE, SIZE), clip_frames=T)))
        features = frozen_features.FeatureStore(next((tmp/'features0').glob('*/features.json')).parent, store)
        recipe = Recipe(clip_frames=T, batch_size=8, train='head')
        for head in HEADS:
            net = EncoderModel(len(classes), spec, head)
            learn = make_learner(HeadOnly(net), feature_loaders(features, table, classes, features.shape[0], 8), recipe)
            seconds[head] = [timed(lambda: fit(learn, 4, 1e-3, recipe))/4 for _ in range(rounds)]
    m = {k: statistics.median(v) for k, v in seconds.items()}
    print(f'{n} clips of {T} frames of {SIZE}×{SIZE}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}')
    print(f"looking {m['look']/n:.2f} s a clip; storing goes at {m['look']/m['store']:.1%} of the speed of looking alone")
    for h in HEADS: print(f"{h:12} an epoch takes a {m['look']/m[h]:,.0f}th of one look at the clips ({1000*m[h]:.0f} ms)")


def imports(before, n=9):
    "Seconds to import kinetics_dance.inference, in turns; the ratio of the medians"
    seconds = {}
    for _ in range(n+1):
        for name, root in (('before', before), ('after', ROOT)):
            env = os.environ | dict(PYTHONPATH=str(root))
            run = lambda: subprocess.run([sys.executable, '-c', 'import kinetics_dance.inference'], env=env, cwd=root, check=True)
            seconds.setdefault(name, []).append(timed(run))
    m = {k: statistics.median(v[1:]) for k, v in seconds.items()}       # the first one reads the disk
    print(f"import kinetics_dance.inference: {m['before']:.2f} s before, {m['after']:.2f} s after: {m['after']/m['before']:.2f}; load {os.getloadavg()[0]:.1f}")


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--clips', type=int, default=24)
    ap.add_argument('--before', type=Path, help='folder of another version of the project')
    a = ap.parse_args()
    torch.set_num_threads(1)
    if a.before: imports(a.before.resolve())
    encoders(a.clips)
