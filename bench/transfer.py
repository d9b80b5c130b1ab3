"""What pretrained weights are worth: a frozen MobileNetV2 with ImageNet weights against the same network with random ones, on real motion.

    python bench/transfer.py [--train 25] [--test 20] [--actions 10]

The motion is that of Penn Action (joints of real people, official split), drawn as a dancer of the rendered study in a costume and before a
backdrop that are drawn anew for each sequence, and have nothing to do with the action. Eight frames of a sequence go through the frozen network once; the same
heads are then trained on the features, with the same seeds: the vote of single frames and the LSTM. The random network is given two chances: as it is
initialised (`random`), and with batch norms whose statistics were taken from the training clips (`random, calibrated`).
Needs ../shared/data; on two cores about four minutes."""
import argparse, json, time, warnings
from functools import partial
warnings.filterwarnings('ignore', category=FutureWarning)
from pathlib import Path
import numpy as np, torch
from torch import nn
import torch.nn.functional as F
from kinetics_dance.synthetic import dancers
from kinetics_dance.models.backbones import FrameFeatures
from kinetics_dance.loading.reader import normalise
from kinetics_dance.cnn_lstm import CNNLSTM
from kinetics_dance.per_frame import PerFrame

DATA = Path(__file__).resolve().parents[2]/'shared/data'
MOTION, WEIGHTS = DATA/'motion/penn_action_2d_joints.npz', DATA/'weights/mobilenet_v2_torchvision_keys.npz'
ACTIONS = ['jumping_jacks', 'squat', 'golf_swing', 'bowl', 'pullup', 'pushup', 'jump_rope', 'clean_and_jerk', 'bench_press', 'strum_guitar', 'situp',
           'tennis_serve', 'baseball_pitch', 'baseball_swing', 'tennis_forehand']
T, SIZE = 8, (96, 128)


def sequences(actions, n_train, n_test):
    "`(joints (n,13,2) in pixels, action, whether to train on it)` of the first so many of each action in each part of the official split"
    with np.load(MOTION, allow_pickle=False) as f: xy, at, meta = f['xy'], f['offsets'], json.loads(str(f['meta']))
    left = {(a, part): n for a in actions for part, n in ((1, n_train), (-1, n_test))}
    for k, m in enumerate(meta):
        key = m['action'], m['train']
        if left.get(key, 0) > 0 and m['nframes'] >= T:
            left[key] -= 1
            yield xy[at[k]:at[k+1]], actions.index(m['action']), m['train'] == 1


def film(xy, seed):
    "Eight frames `(T,h,w,3)` of a dancer who moves like this"
    rng = np.random.default_rng(seed)
    xy = xy[(2*np.arange(T) + 1)*len(xy)//(2*T)].astype(float)
    low, high = xy.reshape(-1, 2).min(0), xy.reshape(-1, 2).max(0)
    scale = min(1.7/max(1, high[0]-low[0]), 1.1/max(1, high[1]-low[1]))              # all frames of the sequence fit on the stage
    joints = np.concatenate([(xy - [(low[0]+high[0])/2, high[1]])*[scale, -scale], np.zeros((T, 13, 1))], -1)
    look, stage = dancers.look(rng) | dict(skirt=False), dancers.backdrop(rng, int(rng.integers(2)))
    frames = np.stack([dancers.draw_frame(stage, j, 0., 1., look, rng.uniform(-8, 8, 2)) for j in joints])
    return frames[:, ::dancers.HEIGHT//SIZE[0], ::dancers.WIDTH//SIZE[1]]


def features(net, films):
    "`(n,T,N,C)`"
    net.eval()
    with torch.inference_mode(): return torch.cat([net(normalise(films[i:i+8])) for i in range(0, len(films), 8)]).clone()


def calibrate(net, films, n=64):
    "Let the batch norms take their statistics from some training clips, layer by layer as in training"
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms: m.reset_running_stats(); m.momentum = None            # the mean over all batches
    net.train()
    with torch.inference_mode():
        for i in range(0, min(n, len(films)), 8): net(normalise(films[i:i+8]))
    return net.eval()


def accuracy(model, f, y, train, epochs, seed, lr=1e-3, bs=32):
    "Train the head of a model on features, give the accuracy of clips of the official test split"
    torch.manual_seed(seed)
    head = [p for n, p in model.named_parameters() if not n.startswith('features.')]
    for m in model.modules():
        if m is not model and hasattr(m, 'reset_parameters') and not any(m is b for b in model.features.modules()): m.reset_parameters()
    at = torch.arange(len(y))[train]
    steps = epochs*(-(-len(at)//bs))
    opt = torch.optim.AdamW(head, lr=lr, weight_decay=.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for b in at[torch.randperm(len(at))].split(bs):
            s = model.score(f[b])
            s, z = (s.flatten(0, 1), y[b].repeat_interleave(T)) if s.ndim == 3 else (s, y[b])
            opt.zero_grad(); F.cross_entropy(s, z, label_smoothing=.1).backward(); opt.step(); cycle.step()
    model.eval()
    with torch.inference_mode(): p = model.score(f[~train]).softmax(-1)
    return float(((p.mean(1) if p.ndim == 3 else p).argmax(1) == y[~train]).float().mean())


def compare(actions, n_train, n_test, epochs=15, seeds=(0, 1), calibrated=True, heads=('vote', 'LSTM'), say=partial(print, flush=True)):
    "`{weights: {head: accuracies}}`, and the number of test clips"
    start = time.perf_counter()
    found = list(sequences(actions, n_train, n_test))
    films = torch.from_numpy(np.stack([film(xy, k) for k, (xy, _, _) in enumerate(found)]))
    y, train = torch.tensor([a for _, a, _ in found]), torch.tensor([t for _, _, t in found])
    say(f'{int(train.sum())} + {int((~train).sum())} clips drawn in {time.perf_counter()-start:.0f} s')
    torch.manual_seed(0)
    nets = {'ImageNet': FrameFeatures('mobilenet_v2', str(WEIGHTS), batch_norm='frozen'), 'random': FrameFeatures('mobilenet_v2')}
    if calibrated: nets['random, calibrated'] = nets['random']
    make = dict(vote=lambda: PerFrame(len(actions), 'mobilenet_v2', hidden=128), LSTM=lambda: CNNLSTM(len(actions), 'mobilenet_v2', hidden=128))
    models = {h: make[h]() for h in heads}
    res = {}
    for name, net in nets.items():
        start = time.perf_counter()
        f = features(calibrate(net, films[train]) if 'calibrated' in name else net, films)
        res[name] = {h: [accuracy(m, f, y, train, epochs, s) for s in seeds] for h, m in models.items()}
        say(f'{name:20s}' + '   '.join(f'{h} {np.mean(a):.3f} ({min(a):.3f} to {max(a):.3f})' for h, a in res[name].items()) + f'   {time.perf_counter()-start:.0f} s')
    return res, int((~train).sum())


def main():
    ap = argparse.ArgumentParser()
    for name, n in (('--train', 25), ('--test', 20), ('--actions', 10)): ap.add_argument(name, type=int, default=n)
    a = ap.parse_args()
    if not MOTION.exists() or not WEIGHTS.exists(): return print(f'skipped: {DATA} is not there')
    torch.set_num_threads(2)
    res, n = compare(ACTIONS[:a.actions], a.train, a.test)
    for h in next(iter(res.values())):
        best = max(np.mean(v[h]) for k, v in res.items() if k != 'ImageNet')
        print(f'{h}: frozen ImageNet weights {np.mean(res["ImageNet"][h]):.3f}, the better of the random networks {best:.3f}, '
              f'{(np.mean(res["ImageNet"][h])-best)*100:+.1f} points on {n} test clips (chance {1/a.actions:.3f})')


if __name__ == '__main__': main()
