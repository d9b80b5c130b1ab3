"""Inference: what it costs beyond decoding and the forward pass, warm and cold; against the way this exercise is usually done
(cut with ffmpeg, write 100 JPEG files, read them back with PIL, one forward pass each); and memory for an hour of video.

    python bench/inference.py            # about four minutes on two cores, which should have nothing else to do
    python bench/inference.py --no-hour  # without the hour of video

Rivals take turns in one run; each number is the median of its rounds."""
import argparse, json, os, subprocess, sys, tempfile, threading, time
from pathlib import Path
from statistics import median
import imageio_ffmpeg, psutil

FFMPEG, ROOT = imageio_ffmpeg.get_ffmpeg_exe(), Path(__file__).resolve().parent.parent


def ffmpeg(*args): subprocess.run([FFMPEG, '-v', 'error', '-nostdin', '-y', *map(str, args)], check=True)


def make_clip(path, seconds=10):
    ffmpeg('-f', 'lavfi', '-i', f'testsrc2=size=340x256:rate=30:duration={seconds}', '-f', 'lavfi', '-i', f'sine=duration={seconds}', '-c:v', 'libx264',
           '-preset', 'medium', '-pix_fmt', 'yuv420p', '-c:a', 'aac', path)
    return path


def make_model(folder, spec):
    import importlib, torch
    from safetensors.torch import save_file
    module, name = spec.split(':')
    torch.manual_seed(0)
    net = getattr(importlib.import_module(module), name)(n_classes=15)
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder/'model.safetensors')
    (folder/'config.json').write_text(json.dumps(dict(format=1, model=spec, arguments={}, classes=[f'class {i}' for i in range(15)], frames=8, crop=[44, 60],
                                                    stored=dict(height=48, width=64), clip_seconds=10.)))
    return folder


def take_turns(functions, rounds):
    "{name: median seconds}; every other round goes backwards"
    took = {k: [] for k in functions}
    for f in functions.values(): f()
    for r in range(rounds):
        for k in list(functions)[::1 - 2*(r % 2)]:
            began = time.perf_counter()
            functions[k]()
            took[k].append(time.perf_counter() - began)
    return {k: median(v) for k, v in took.items()}


def warm(clip, folder, rounds):
    "A prediction against its two parts: decoding of the needed frames, and the forward pass"
    import numpy as np, torch
    from kinetics_dance.loading.reader import normalise
    from kinetics_dance.inference import Predictor
    from kinetics_dance.video.reading import read_frames
    p = Predictor.load(folder)
    wanted = (2*np.arange(8)+1)*300//16
    def parts():
        x = torch.from_numpy(read_frames(clip, wanted, size=(48, 64))[None, :, 2:46, 2:62].copy())
        with torch.inference_mode(): return p.model(normalise(x)).softmax(-1)
    assert np.abs(p.predict(clip).windows-(parts().mean(1) if parts().ndim == 3 else parts()).numpy()).max() < 1e-5, 'the same frames, the same answer'
    got = take_turns({'prediction': lambda: p.predict(clip), 'decode + forward': parts}, rounds)
    p.close()
    return got


def cold(clip, folder, rounds):
    "The command against the least that a process must do: import torch, load the model, forward"
    least = (f"import torch\nfrom kinetics_dance.models.config import load_model\nm = load_model({str(folder)!r})\n"
             "with torch.inference_mode(): m(torch.zeros(1, 8, 3, 44, 60))")
    run = lambda *a: subprocess.run([sys.executable, *a], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return take_turns({'command': lambda: run('-m', 'kinetics_dance.study.cli', 'predict', str(clip), '--model-path', str(folder)),
                       'import torch + load + forward': lambda: run('-c', least), '--help': lambda: run('-m', 'kinetics_dance.study.cli', '--help')}, rounds)


def usual(clip, folder, rounds):
    "The usual way on the same clip and model, and what each leaves behind"
    import numpy as np, torch
    from PIL import Image
    from kinetics_dance.models.config import load_model
    from kinetics_dance.inference import Predictor
    model, p, here = load_model(folder), Predictor.load(folder), clip.parent
    mean, std = (torch.tensor(v)[:, None, None] for v in ((.485, .456, .406), (.229, .224, .225)))
    def usual():
        ffmpeg('-ss', 0, '-i', clip, '-t', 10, here/'clip_cut.mp4')
        (here/'frames').mkdir(exist_ok=True)
        ffmpeg('-i', here/'clip_cut.mp4', '-vf', 'fps=10', '-frames:v', 100, '-q:v', 2, here/'frames'/'%03d.jpg')
        votes = []
        for f in sorted((here/'frames').glob('*.jpg')):
            x = Image.open(f).convert('RGB').resize((60, 44), Image.BILINEAR)
            x = (torch.from_numpy(np.asarray(x).copy()).permute(2, 0, 1)/255-mean)/std
            with torch.inference_mode(): votes.append(model(x[None, None]).softmax(-1).mean(1))
        return torch.cat(votes).mean(0)
    before = set(here.rglob('*'))
    p.predict(clip)
    left = {'kinetics_dance': len(set(here.rglob('*'))-before)}
    got = take_turns({'kinetics_dance': lambda: p.predict(clip), 'the usual way': usual}, rounds)
    left['the usual way'] = len(set(here.rglob('*'))-before)
    p.close()
    return got, left


def peak(clip, folder):
    "(seconds, peak memory in MB of the command and its worker)"
    began, most = time.perf_counter(), 0
    p = subprocess.Popen([sys.executable, '-m', 'kinetics_dance.study.cli', 'predict', str(clip), '--model-path', str(folder), '--step', '1', '--json'], cwd=ROOT,
                         stdout=subprocess.DEVNULL)
    tree = psutil.Process(p.pid)
    while p.poll() is None:
        try: most = max(most, sum(q.memory_info().rss for q in (tree, *tree.children(recursive=True))))
        except psutil.NoSuchProcess: pass
        time.sleep(.05)
    assert p.returncode == 0
    return time.perf_counter()-began, most/1e6


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--no-hour', action='store_true', help='leave out the hour of video')
    ap.add_argument('--rounds', type=int, default=9)
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        clip = make_clip(tmp/'clip.mp4')
        models = {n: make_model(tmp/n, spec) for n, spec in (('per_frame', 'kinetics_dance.per_frame:PerFrame'), ('cnn_lstm', 'kinetics_dance.cnn_lstm:CNNLSTM'))}
        def line(what, got, limit, least=False):
            (x, y), ratio = list(got.values())[:2], None
            ratio = y/x if least else x/y
            fine = ratio >= limit if least else ratio <= limit
            print(f"{what:34s} " + ', '.join(f'{k} {v*1e3:.0f} ms' for k, v in got.items()) + f": {ratio:.2f}x ({'at least' if least else 'at most'} {limit}) {'ok' if fine else 'MISSED'}", flush=True)
        for n, m in models.items(): line(f'warm, {n}', warm(clip, m, 2*a.rounds), 1.25)
        got = cold(clip, models['cnn_lstm'], a.rounds)
        line('cold, cnn_lstm', got, 1.3)
        print(f"kinetics-dance --help: {got['--help']:.2f} s (at most 0.6) {'ok' if got['--help'] < .6 else 'MISSED'}")
        got, left = usual(clip, models['per_frame'], a.rounds)
        line('against the usual way, per_frame', got, 5, least=True)
        print('files left behind: ' + ', '.join(f'{k} {v}' for k, v in left.items()))
        if not a.no_hour:
            minute, hour = make_clip(tmp/'minute.mp4', 60), tmp/'hour.mp4'
            ffmpeg('-stream_loop', 59, '-i', minute, '-c', 'copy', hour)
            (t1, m1), (t2, m2) = peak(minute, models['cnn_lstm']), peak(hour, models['cnn_lstm'])
            print(f"a minute: {t1:.0f} s, {m1:.0f} MB; an hour: {t2:.0f} s, {m2:.0f} MB: {m2-m1:+.0f} MB (at most 200) {'ok' if m2-m1 <= 200 else 'MISSED'}")


if __name__ == '__main__': main()
