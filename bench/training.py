"""What a training costs beside what it must cost: ratios, each against a peer or a floor that is measured in turn with it.

    python bench/training.py [overhead] [heads] [frozen] [probes] [seed] [cuda] [--threads 2]        # all parts: under four minutes on two cores

Two kinds of clips. *Rendered*: the published demo study, 8 frames of 44×60 in batches of 8, through the small picture network. *Large*: 10 s at 25
frames a second, 340×256, photographs with a moving camera and noise; 16 frames of 112×112, through ResNet18 or MobileNetV2 (random weights: it is about time).
Steps are forward, loss, backward, gradient clipping and optimiser; ratios are medians over rounds
in which the two sides take turns.

overhead  A step of the library's Learner (`fit`: fastai with the history, the NaN check, the schedule, gradient clipping) against a bare PyTorch loop that is
          given the same batches from a loader of its own, the same schedule, and ends in the same weights (checked, up to rounding). And the share of a Learner's
          step in which it waits for the frame store (fetching, normalising, augmenting, all in one process: nothing is hidden behind workers).
heads     A step of each model against a step of its picture network alone (whose loss is the mean of its features).
frozen    A training epoch of `train: all` against one of `train: head`, same clips, same batches; what storing the features takes is shown beside it.
probes    Test clips under all probes in one pass against one pass a probe that looks at the frames of this probe alone; the answers are compared, too.
seed      The loop of a straightforward project of this kind: JPEG frames in full size on disk, read with PIL, resized, mirrored at random and normalised
          one by one, windows of 4 neighbouring frames, 4 windows a batch, Adam. Same model (CNN-LSTM), same clips, same resolution, same threads, no workers on either
          side. A clip counts when its epoch's worth is done: there *all its frames* (62 windows, 248 frames), here the 16 (or 8) frames, spread over the clip, that the
          recipe takes. The rows "same frames" count so many frames on both sides: what is left there is batches, JPEG and PIL.
cuda      ResNet18 at 16×112 and 16×224 with bf16, channels_last and torch.compile: clips/s through the loader against clips/s of one batch that stays on
          the device; and the share of the device's measured bf16 matrix product rate."""
import argparse, contextlib, copy, itertools, os, platform, subprocess, tempfile, time, warnings
warnings.filterwarnings('ignore')
from pathlib import Path
import imageio_ffmpeg, numpy as np, pandas as pd, psutil, torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision.transforms import functional as TF
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from kinetics_dance.synthetic import uploads, dancers
from kinetics_dance.models.backbones import FrameFeatures
from kinetics_dance.cnn_lstm import CNNLSTM
from kinetics_dance.training.frozen_features import HeadOnly, build_features, feature_loaders
from kinetics_dance.loading.reader import MEAN, STD, FrameStore, normalise
from kinetics_dance.loading.store import build_store
from kinetics_dance.video.reading import read_frames
from kinetics_dance.video.samplers import uniform
from kinetics_dance.loading.dataloader import ClipDataLoaders, ClipLoader, Clips
from kinetics_dance.per_frame import PerFrame
from kinetics_dance.evaluation.perturbations import list_perturbations, predict_perturbed, perturbed_frames
from kinetics_dance.training.recipe import Recipe
from kinetics_dance.models.scores import ClipLoss, clip_probabilities
from kinetics_dance.training.learner import fit, make_learner, rates, split_parameters
from kinetics_dance.video.encoding import normalise_clip
from kinetics_dance.video_transformer import VideoTransformer

MODELS = dict(per_frame=PerFrame, cnn_lstm=CNNLSTM, video_transformer=VideoTransformer)
LARGE = Recipe(clip_frames=16, crop_height=112, crop_width=112, batch_size=8)
LR, EPOCH, clock = 1e-3, 120, time.perf_counter
rows = []


def row(what, value, sign='', bar=None, note=''):
    "Print a line as soon as it is known"
    met = '' if bar is None else 'met' if (value >= bar if sign == '≥' else value <= bar) else 'MISSED'
    rows.append(met)
    print(f'{what:74}{value:10.3g}   {f"bar {sign} {bar:g}" if bar is not None else "":12} {met:7}{note}', flush=True)


# ---- clips

def rendered(d):
    "64 names of 12 rendered clips, stored as the demo study stores them; the 48 to train on are listed three times"
    for k in range(12): uploads.write_video(d/f'demo{k}.mp4', dancers.render_clip(list(dancers.PAIRS)[k % 6], k // 6, k))
    table = pd.DataFrame([(f'c{i:02}', f'demo{i % 12}.mp4', f'class {i % 12}', 'valid' if i % 4 == 3 else 'train') for i in range(64)],
                         columns=['clip_id', 'path', 'label', 'split'])
    build_store(table, d/'rendered', n_frames=24, size=(48, 64), log=lambda line: None)
    return FrameStore(d/'rendered'), pd.concat([table, *[table[table.split == 'train']]*2])


def filmed(d, size=(128, 171), name='large'):
    "32 names of 4 clips of ten seconds"
    if not (d/'film3.mp4').exists():
        for k, photo in enumerate(load_sample_images()['images']*2):
            Image.fromarray(photo).save(d/'photo.png')
            move = f"scale=425:320,crop=340:256:x='(iw-ow)*(.5+.5*sin(t+{k}))':y='(ih-oh)*(.5+.5*cos(t*.7))',noise=alls=6:allf=t"
            subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-y', '-loop', '1', '-framerate', '25', '-t', '10', '-i', d/'photo.png', '-vf', move,
                            '-c:v', 'libx264', '-preset', 'veryfast', '-pix_fmt', 'yuv420p', d/'source.mp4'], check=True)
            normalise_clip(d/'source.mp4', d/f'film{k}.mp4')
    table = pd.DataFrame([(f'c{i:02}', f'film{i % 4}.mp4', f'class {i % 4}', 'valid' if i >= 24 else 'train') for i in range(32)],
                         columns=['clip_id', 'path', 'label', 'split'])
    build_store(table, d/name, n_frames=16, size=size, log=lambda line: None)
    return FrameStore(d/name), table


def loaders(store, table, r, **how):
    return ClipDataLoaders.from_store(store, table, None, r.clip_frames, r.crop, r.batch_size, 0, r.flip, r.color_jitter, r.workers, device=r.device, **how)


# ---- steps

def optimiser(model, recipe):
    groups, (lrs, decays) = [g for g in split_parameters(model) if g], rates(model, recipe, LR)
    return torch.optim.AdamW([dict(params=g, lr=l, weight_decay=w) for g, l, w in zip(groups, lrs, decays)], foreach=True)


def step(model, opt, loss_func, x, y):
    loss = loss_func(model(x), y)
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.)
    opt.step()
    return loss


class Waits(ClipLoader):
    "A loader that adds up how long it is waited for"
    waited = 0.
    def __iter__(self):
        it = super().__iter__()
        while True:
            start = clock()
            try: b = next(it)
            except StopIteration: return
            finally: self.waited += clock()-start
            yield b


class First(Callback):
    order = -100
    def __init__(self, to): self.to = to
    def before_train(self): self.to.start, self.dl.waited = clock(), 0.


class Turns(Callback):
    "Times the training part of each epoch; then lets the other side do the same epoch"
    order = 100
    def __init__(self, other=None): self.other, self.took, self.waited, self.others = other, [], [], []
    def after_train(self): self.took.append(clock()-self.start); self.waited.append(self.learn.dls.train.waited)
    def after_epoch(self):
        if self.other: start = clock(); self.other(); self.others.append(clock()-start)


class Pairs(Callback):
    "Times each step from the end of the one before, waiting included; then lets the other side do the same step, so that both meet the same machine"
    order = 100
    def __init__(self, other): self.other, self.took, self.waited, self.others = other, [], [], []
    def before_train(self): self.last, self.had = clock(), 0.
    def before_batch(self): self.rates = [(g['lr'], g['betas'][0]) for g in self.learn.opt.opt.param_groups]
    def after_batch(self):
        if not self.learn.training: return
        now, dl = clock(), self.learn.dls.train
        self.took.append(now-self.last); self.waited.append(dl.waited-self.had)
        self.other(self.rates)
        self.had, self.last = dl.waited, clock()
        self.others.append(self.last-now)


def train(model, dls, recipe, epochs, other=None, turns=Turns):
    "`fit` as the library does it; returns the times of its training parts, or steps"
    turns = turns(other)
    if type(dls.train) is ClipLoader: dls.train.__class__ = Waits
    with contextlib.redirect_stdout(None): fit(make_learner(model, dls, recipe), epochs, LR, recipe, cbs=[First(turns), turns])
    return turns


def median_ratio(a, b): return float(np.median(np.array(a)/np.array(b)))


# ---- parts

def overhead(d, threads):
    "Learner against a bare loop; share of waiting"
    print('\n# Learner and data: rendered clips, small network, one thread as the published study')
    torch.set_num_threads(1)
    store, table = rendered(d)
    recipe = Recipe()
    for name, cls in MODELS.items():
        set_seed(0, reproducible=True)
        model = cls(12); twin = copy.deepcopy(model); begun = [p.detach().clone() for p in model.parameters()]
        dls, others = loaders(store, table, recipe), loaders(store, table, recipe)
        opt, loss_func = optimiser(twin, recipe), ClipLoss(recipe.label_smoothing)
        state = torch.get_rng_state()
        batches = itertools.chain.from_iterable(itertools.repeat(others.train))
        def bare(values):
            nonlocal state
            kept = torch.get_rng_state(); torch.set_rng_state(state)                     # the same dropout
            twin.train()
            x, y = next(batches)
            for g, (lr, mom) in zip(opt.param_groups, values): g['lr'], g['betas'] = lr, (mom, .999)
            step(twin, opt, loss_func, x, y)
            state = torch.get_rng_state(); torch.set_rng_state(kept)
        t = train(model, dls, recipe, 6, bare, Pairs)
        size = lambda pairs: sum((a-b).square().sum() for a, b in pairs).sqrt().item()
        apart, moved = size(zip(model.parameters(), twin.parameters())), size(zip(model.parameters(), begun))
        assert apart < .05*moved, f'the two loops do not end in the same weights: {apart:.3g} apart, {moved:.3g} from where they began'
        row(f'{name}: Learner / bare loop ({1e3*np.median(t.others):.0f} ms a step)', median_ratio(t.took[5:], t.others[5:]), '≤', 1.03)
        row(f'{name}: share of the time spent waiting for data', sum(t.waited[5:])/sum(t.took[5:]), '≤', .05)
    torch.set_num_threads(threads)


def heads(d, threads):
    "Each model against its picture network alone"
    for what, recipe, backbone, rounds, n in (('rendered clips, small network, one thread', Recipe(), 'small', 12, 1),
                                              (f'16×112×112, ResNet18, batch of 4, {threads} threads', LARGE, 'resnet18', 2, threads)):
        print(f'\n# Heads: {what}')
        torch.set_num_threads(n)
        b = 8 if backbone == 'small' else 4
        x, y = normalise(torch.randint(0, 256, (b, recipe.clip_frames, *recipe.crop, 3), dtype=torch.uint8)), torch.randint(0, 12, (b,))
        # the body alone: the same optimiser for its parameters, a loss that costs nothing
        nets = dict(alone=FrameFeatures(backbone), **{k: c(12, backbone, **({'frames': recipe.clip_frames} if k == 'video_transformer' else {})) for k, c in MODELS.items()})
        opts = {k: torch.optim.AdamW(m.parameters(), lr=1e-4, foreach=True) for k, m in nets.items()}
        took, loss_func = {k: [] for k in nets}, ClipLoss(.1)
        for r in range(rounds+1):
            for k, m in nets.items():
                start = clock()
                step(m, opts[k], (lambda f, y: f.mean()) if k == 'alone' else loss_func, x, y)
                if r: took[k].append(clock()-start)
        for k in MODELS:
            row(f'{k} / picture network alone ({1e3*np.median(took["alone"]):.0f} ms)', median_ratio(took[k], took['alone']), '≤', 1.25)
    torch.set_num_threads(threads)


def frozen(d, threads):
    "Fine-tuning against heads on stored features"
    print(f'\n# train: all / train: head, 16×112×112, 24 clips, batch of 8, {threads} threads')
    store, table = filmed(d)
    classes = sorted(set(table.label))
    for backbone in ('resnet18', 'mobilenet_v2'):
        for name, cls in MODELS.items():
            more = dict(frames=16) if name == 'video_transformer' else {}
            model = cls(4, backbone, **more)
            if name == 'per_frame':         # the first one stores the features, the others find them
                shared = model.features.state_dict()
                fine = train(copy.deepcopy(model), loaders(store, table, LARGE), LARGE, 1)
                alone = fine.took[0]
            model.features.load_state_dict(shared)
            start = clock()
            features = build_features(model.features, store, d/f'features', LARGE.crop)
            if name == 'per_frame': built = clock()-start
            dls = feature_loaders(features, table, classes, 16, 8)
            t = train(HeadOnly(model), dls, LARGE, 8)
            row(f'{backbone}, {name}: fine-tuning epoch / head epoch ({alone:.1f} s, {1e3*np.median(t.took[2:]):.0f} ms)', alone/np.median(t.took[2:]), '≥', 30,
                note=f'   storing the features, once: {built/alone*24/32:.2f} fine-tuning epochs' if name == 'per_frame' else '')


def probes(d, threads):
    "All probes in one pass"
    print('\n# Probes: rendered clips, 24 stored frames, 8 seen, one thread')
    torch.set_num_threads(1)
    store, table = rendered(d)
    clips = Clips(store, table.drop_duplicates(), sorted(set(table.label)), 8, (44, 60))
    names = list_perturbations(24, 8)
    top, left = np.full(len(clips), 2), np.full(len(clips), 2)
    for name, cls in MODELS.items():
        model = cls(12).eval()
        @torch.inference_mode()
        def one_by_one():
            out = {}
            for probe in names:
                for i in range(0, len(clips), 8):
                    ids = clips.ids[i:i+8]
                    x = store.batch(ids, perturbed_frames(probe, 24, 8, ids), top[:len(ids)], left[:len(ids)], (44, 60))
                    out.setdefault(probe, []).append(clip_probabilities(model(normalise(torch.from_numpy(x)))).double().numpy())
            return {k: np.concatenate(v) for k, v in out.items()}
        took = []
        for _ in range(3):
            a = clock(); together = predict_perturbed(model, clips, names); b = clock(); apart = one_by_one(); c = clock()
            took.append((c-b)/(b-a))
        assert all(np.allclose(together[k], apart[k], atol=1e-5) for k in names)
        row(f'{name}: {len(names)} probes, one pass each / one pass for all', float(np.median(took)), '≥', 1.)
    torch.set_num_threads(threads)


class Windows(torch.utils.data.Dataset):
    "Windows of 4 neighbouring JPEG frames of a clip, read and changed one by one"
    def __init__(self, folders, size): self.size, self.at = size, [(f, k) for f in folders for k in range(0, len(list(f.glob('*.jpg')))-3, 4)]
    def __len__(self): return len(self.at)
    def __getitem__(self, i):
        folder, k = self.at[i]
        frames = []
        for n in range(k, k+4):
            im = Image.open(folder/f'{n:05d}.jpg').convert('RGB').resize(self.size[::-1], Image.Resampling.BILINEAR)
            if np.random.random() < .5: im = im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            frames.append(TF.normalize(TF.to_tensor(im), MEAN, STD))
        return torch.stack(frames), hash(folder.name) % 4


def seed(d, threads):
    "The recipe against the usual loop"
    store, table = filmed(d)
    folders = []
    for k in range(2):
        folders.append(d/f'jpeg{k}'); folders[-1].mkdir(exist_ok=True)
        for i, x in enumerate(read_frames(d/f'film{k}.mp4', uniform(250, 250))): Image.fromarray(x).save(folders[-1]/f'{i:05d}.jpg', quality=90)
    small = Recipe()
    build_store(table, d/'tiny', n_frames=24, size=(48, 64), log=lambda line: None)
    for what, backbone, recipe, store, n, batches in ((f'ResNet18, 16×112×112, {threads} threads', 'resnet18', LARGE, store, threads, 5),
                                                    ('small network, 8×44×60, one thread', 'small', small, FrameStore(d/'tiny'), 1, 20)):
        print(f'\n# Against the usual loop: CNN-LSTM, {what}')
        torch.set_num_threads(n)
        theirs, ours = CNNLSTM(4, backbone), CNNLSTM(4, backbone)
        opt, data = torch.optim.Adam(theirs.parameters(), 1e-4), torch.utils.data.DataLoader(Windows(folders, recipe.crop), batch_size=4, shuffle=True)
        it = itertools.chain.from_iterable(itertools.repeat(data))
        def batch():
            x, y = next(it)
            loss = F.cross_entropy(theirs(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
        batch()
        rate, T = [], recipe.clip_frames
        def usual():
            start = clock()
            for _ in range(batches): batch()
            rate.append(16*batches/(clock()-start))                                   # frames a second
        t = train(ours, loaders(store, table, recipe), recipe, 2 if backbone == 'resnet18' else 4, usual)
        clips = 24/np.array(t.took)
        windows = len(Windows(folders[:1], recipe.crop))
        k = 0 if backbone == 'resnet18' else 1
        r = lambda frames: median_ratio(clips[k:], np.array(rate[k:])/frames)
        row(f'clips/s, recipe / usual loop, an epoch each ({T} frames; all {4*windows}): {np.median(clips):.2f} / {np.median(rate)/4/windows:.3f}', r(4*windows), '≥', 10)
        row(f'same frames: {T} of a clip on both sides', r(T))
    torch.set_num_threads(threads)


# ---- CUDA

def matmul_rate(dev):
    "bf16 floating-point operations a second in a product of large matrices"
    a, b = (torch.randn(8192, 8192, device=dev, dtype=torch.bfloat16) for _ in '12')
    best = 0.
    for _ in range(6):
        torch.cuda.synchronize(); start = clock()
        for _ in range(10): a @ b
        torch.cuda.synchronize(); best = max(best, 10*2*8192**3/(clock()-start))
    return best


def cuda(d, threads):
    "ResNet18 with everything on"
    if not torch.cuda.is_available():
        print('\n# CUDA: no CUDA device')
        return
    from torch.utils.flop_counter import FlopCounterMode
    peak = matmul_rate('cuda')
    print(f'\n# CUDA: {torch.cuda.get_device_name()}, torch {torch.__version__}, bf16 products at {peak/1e12:.0f} TFLOP/s, {os.cpu_count()} cores')
    workers = max(2, min(12, len(os.sched_getaffinity(0))-2))
    for side, size, bs in ((112, (128, 171), 64), (224, (256, 341), 32)):
        store, table = filmed(d, size, f'large{side}')
        n = bs*EPOCH                                                                    # clips of an epoch, names over and over: thousands, as real ones
        recipe = Recipe(clip_frames=16, crop_height=side, crop_width=side, batch_size=bs, precision='bf16', compile=True, workers=workers, device='cuda')
        train_clips, valid = table[table.split == 'train'].sample(n, replace=True, random_state=0), table[table.split == 'valid']
        dls = loaders(store, pd.concat([train_clips, valid]), recipe)
        model = CNNLSTM(4, 'resnet18').to('cuda')
        x = torch.randn(2, 16, 3, side, side, device='cuda')
        with FlopCounterMode(display=False) as count: model(x).sum().backward()
        flops = count.get_total_flops()/2
        # the floor: one batch that stays on the device, the same step without a Learner
        floor_model = copy.deepcopy(model); floor_model.features.body.compile()
        opt, loss_func = optimiser(floor_model, recipe), ClipLoss(.1)
        x, y = normalise(torch.randint(0, 256, (bs, 16, side, side, 3), dtype=torch.uint8, device='cuda')), torch.randint(0, 4, (bs,), device='cuda')
        def floor(k):
            for _ in range(k):
                with torch.autocast('cuda', torch.bfloat16): loss = loss_func(floor_model(x), y)
                opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(floor_model.parameters(), 1.); opt.step()
            torch.cuda.synchronize()
        floor(5)
        def other(): floor(len(dls.train))
        t = train(model, dls, recipe, 3, other)
        rate, best = n/np.array(t.took[1:]), n/np.array(t.others[1:])
        row(f'16×{side}: clips/s through the loader, batch of {bs}, {workers} workers', float(np.median(rate)))
        row(f'16×{side}: loader / one batch that stays on the device', median_ratio(rate, best), '≥', .9)
        row(f'16×{side}: share of the time spent waiting for data', median_ratio(t.waited[1:], t.took[1:]), '≤', .05)
        row(f'16×{side}: share of the rate of bf16 products ({flops/1e9:.0f} GFLOP a clip)', float(np.median(rate))*flops/peak)


PARTS = dict(overhead=overhead, heads=heads, frozen=frozen, probes=probes, seed=seed, cuda=cuda)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('parts', nargs='*', help=', '.join(PARTS))
    p.add_argument('--threads', type=int, default=os.cpu_count() if os.cpu_count() < 8 else 8, help='CPU threads of the large networks')
    p.add_argument('--cpu-time', action='store_true', help='count processor time, not seconds: for a machine that is busy with other things')
    args = p.parse_args()
    global clock
    if args.cpu_time: clock = time.process_time
    if bad := set(args.parts)-set(PARTS): p.error(f'{bad.pop()!r} is none of {", ".join(PARTS)}')
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total/2**30:.0f} GiB, '
          f'Python {platform.python_version()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}')
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as d:
        for name in args.parts or PARTS:
            start = clock()
            PARTS[name](Path(d), args.threads)
            print(f'  ({name}: {clock()-start:.0f} s)')
    print(f'\n{rows.count("met")} met, {rows.count("MISSED")} missed')


if __name__ == '__main__': main()
