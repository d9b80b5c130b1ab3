"Files that claim more than they hold: a worker keeps to its limit, and the clip is too large, once and for all."
import resource, struct, subprocess, sys
import pandas as pd, psutil, pytest
from conftest import ROOT
from kinetics_dance.core.base import Unavailable
from kinetics_dance.core.processes import is_too_large, killable, memory_limit, worker_memory, worker_pool
from kinetics_dance.download.sources import is_final
from kinetics_dance.loading.store import build_store
from kinetics_dance.video.decoding import numbered_clip, probe

LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='the limit of this system is another')
LIMIT = 2**30


def boxes(b, at, end):
    while at < end - 8:
        n = int.from_bytes(b[at:at+4], 'big')
        yield at, n, bytes(b[at+4:at+8])
        at += max(n, 8)


def find(b, path, at=0, end=None):
    for p, n, kind in boxes(b, at, end or len(b)):
        if kind == path[0].encode(): return (p, n) if len(path) == 1 else find(b, path[1:], p + 8, p + n)


def index_bomb(path, count, tracks=1):
    "A clip whose index says that it has `count` frames, in each of several tracks: 24 bytes of memory for each"
    b = bytearray(numbered_clip(path, n=30, size=(48, 64), sound=False).read_bytes())
    table = ['moov', 'trak', 'mdia', 'minf', 'stbl']
    p, _ = find(b, [*table, 'stsz']); struct.pack_into('>II', b, p + 12, 1, count)
    p, _ = find(b, [*table, 'stts']); struct.pack_into('>II', b, p + 16, count, 1)
    p, _ = find(b, [*table, 'stsc']); struct.pack_into('>III', b, p + 16, 1, count, 1)
    p, n = find(b, ['moov']); tp, tn = find(b, ['moov', 'trak'])
    track = bytes(b[tp:tp+tn])
    b = b[:p] + struct.pack('>I', n + tn*(tracks - 1)) + b[p+4:p+n] + track*(tracks - 1) + b[p+n:]
    path.write_bytes(b)
    return path


def giant(path):
    "One grey picture of 8,192 x 8,192: 100 MB in memory for each frame that is kept, in 100 kB"
    import imageio_ffmpeg
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-y', '-f', 'lavfi', '-i', 'color=gray:s=8192x8192:r=5:d=1', '-c:v', 'libx264', '-preset', 'ultrafast',
                    '-threads', '1', '-x264-params', 'ref=1:bframes=0', str(path)], check=True)
    return path


def most_memory():
    "Of this program alone, in bytes; what getrusage says begins with the memory of the process that started it"
    kb = [l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')]
    return int(kb[0])*1024 if kb else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024


def peak_of(path):
    "In a worker: what reading said, and the most memory that was taken, in bytes"
    from kinetics_dance.video.decoding import intact_frames
    try:
        n = sum(1 for _ in intact_frames(path))
        said = f'{n} frames'
    except Unavailable as e: said = e.reason
    except MemoryError: said = 'too large'
    return said, most_memory()


@LINUX
@pytest.mark.parametrize('count, tracks', [(85_000_000, 1), (100_000_000, 1), (170_000_000, 1), (60_000_000, 4), (85_000_000, 12), (2**31 - 1, 1)])
def test_an_index_without_an_end(tmp_path, count, tracks):
    said, peak = killable(peak_of, index_bomb(tmp_path/'bomb.mp4', count, tracks), memory=LIMIT)
    assert peak <= 1.05*LIMIT and said in ('too large', 'truncated', 'not a video', '30 frames'), (said, peak)


@LINUX
def test_pictures_beyond_all_size(tmp_path):
    said, peak = killable(peak_of, giant(tmp_path/'giant.mp4'), memory=LIMIT)
    assert peak <= 1.05*LIMIT, peak


@LINUX
def test_frames_call_it_too_large(tmp_path, monkeypatch):
    "A final reason, in the row of this clip alone"
    monkeypatch.setenv('KINETICS_DANCE_MEMORY_MB', '700')
    index_bomb(tmp_path/'bomb.mp4', 85_000_000)
    numbered_clip(tmp_path/'good.mp4', n=30, size=(48, 64))
    clips = pd.DataFrame(dict(clip_id=['bomb', 'good'], path=['bomb.mp4', 'good.mp4']))
    out = build_store(clips, tmp_path/'frames', 4, (24, 32), base=tmp_path, jobs=1, log=lambda l: None).set_index('clip_id')
    assert out.reason['bomb'] == 'too large' and is_final('too large') and out.status['good'] == 'ok'


@LINUX
def test_predict_answers_for_the_others(tmp_path, monkeypatch):
    from kinetics_dance.core.watchdog import Reader
    monkeypatch.setenv('KINETICS_DANCE_MEMORY_MB', '700')
    index_bomb(tmp_path/'bomb.mp4', 85_000_000)
    numbered_clip(tmp_path/'good.mp4', n=30, size=(48, 64))
    reader = Reader('kinetics_dance.deploy.windows')
    def ask(name): return [h['kind'] for h, _ in reader.ask('kinetics_dance.deploy.windows:watch', path=str(tmp_path/name), n=2, seconds=1., step=1., size=(8, 8))]
    with pytest.raises(Unavailable, match='too large'): ask('bomb.mp4')
    assert ask('good.mp4')[-1] == 'end'
    reader.close()


def test_the_limit_of_a_machine(monkeypatch):
    "A share of the memory, within bounds; a number of one's own, or none"
    monkeypatch.delenv('KINETICS_DANCE_MEMORY_MB', raising=False)
    assert 3*2**29 <= memory_limit(1000) <= memory_limit(1) <= 2**32
    for said, wanted in (('700', 700*2**20), ('0', None), ('much', memory_limit(2))):
        monkeypatch.setenv('KINETICS_DANCE_MEMORY_MB', said)
        assert memory_limit(2) == wanted or said == 'much'
    assert is_too_large(MemoryError()) and is_too_large(OSError(12, 'x')) and not is_too_large(OSError(2, 'x'))


@LINUX
def test_the_setting(tmp_path, monkeypatch):
    "`memory_mb` of a study is what its workers may take; afterwards all is as before"
    monkeypatch.delenv('KINETICS_DANCE_MEMORY_MB', raising=False)
    usual = memory_limit(2)
    with worker_memory(None): assert memory_limit(2) == usual
    index_bomb(tmp_path/'bomb.mp4', 85_000_000)
    clips = pd.DataFrame(dict(clip_id=['bomb'], path=['bomb.mp4']))
    with worker_memory(700):
        assert memory_limit(2) == 700*2**20
        out = build_store(clips, tmp_path/'frames', 4, (24, 32), base=tmp_path, jobs=1, log=lambda l: None)
    assert list(out.reason) == ['too large'] and memory_limit(2) == usual
