"""Of any file: the right frames, a stated part, or a clear error. Colours as ffmpeg has them; clips cut to the frame."""
import re, shutil, subprocess
import imageio_ffmpeg, numpy as np, pytest
from conftest import ROOT
from kinetics_dance.video import odd_files, encoding
from kinetics_dance.video.decoding import _nal_types
from kinetics_dance.core.base import StudyError
from kinetics_dance.video.odd_files import ODD_FILES, odd_file
from kinetics_dance.video.reading import frame_times, has_decord, read_frames, regular
from kinetics_dance.core.base import Unavailable
from kinetics_dance.core.processes import worker_pool
from kinetics_dance.video.decoding import (
    Damaged, numbered_clip, open_video, probe, read_numbers, intact_frames)
from kinetics_dance.video.encoding import normalise_clip, sealed

MEDIA = ROOT.parent/'shared/data/media'
LIMIT = 30   # seconds a file
FFMPEG = [imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-nostdin', '-y']

# what is wrong with the file, and so what must come of it; of all others every frame must come
PART = {'claims frames that are zeros', 'a hole of zeros', 'cut short, index first', 'cut short, fragmented', 'cut short, MPEG-TS', 'cut short, VP9',
        'cut short, AVI', 'cut short, no duration', 'damaged H.264', 'damaged MPEG-TS', 'damaged Matroska', 'damaged FLV', 'damaged VP9', 'damaged AV1', 'damaged AVI'}
ERROR = {'cut short, index last': 'truncated', 'damaged at the beginning': 'truncated', 'encrypted': 'not a video', 'encrypted VP9': 'not a video',
         'first segment only': 'truncated', 'sound only': 'not a video', 'text': 'not a video', 'nothing': 'truncated'}
WHOLE = [n for n in ODD_FILES if n not in PART | ERROR.keys() | {'claims 1000 frames'}]

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('odd')

@pytest.fixture(scope='module')
def pool():
    with worker_pool(1) as p: yield p

def make(name, folder):
    try: return odd_file(name, folder)
    except LookupError as e: pytest.skip(f'no encoder here: {e}')

def run(*args): return subprocess.run([*FFMPEG, *map(str, args)], check=True, capture_output=True).stdout

def by_ffmpeg(path, h, w, *options):
    "The reference: ffmpeg's own conversion of every frame, `ffmpeg -noautorotate -i FILE -fps_mode passthrough -f rawvideo -pix_fmt rgb24`"
    return np.frombuffer(run('-noautorotate', '-i', path, *options, '-fps_mode', 'passthrough', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-'),
                         np.uint8).reshape(-1, h, w, 3)

def worst(a, b): return abs(a.astype(int) - b).max()


@pytest.mark.parametrize('name', ODD_FILES)
def test_an_odd_file(name, folder, pool):
    got = pool.schedule(odd_files.outcome_of, args=(make(name, folder), name), timeout=LIMIT).result()
    assert 'WRONG' not in str(got)
    n = len(ODD_FILES[name].shown)
    if name in ERROR: assert all(v.startswith(f'error: {ERROR[name]}') for v in got.values()), got
    elif name in PART:
        assert re.match(r'the first|\d+ of', got['frames']) and len(got['frames'].split(': ')[-1]) > 15, got
        assert re.match(r'the first|\d+ of|error: truncated: ', got['normalised']) and not got['normalised'].endswith(': '), got
    elif name == 'claims 1000 frames': assert got['frames'] == f'all {n}' and got['normalised'].startswith('error: truncated: it ends at 3.2'), got
    else: assert got['frames'] == f'all {n}' and got['normalised'].startswith('all '), got
    if name in PART | ERROR.keys():  # and a frame after the doubt is an error with a reason
        with pytest.raises((IndexError, Unavailable), match=r'can be decoded(:|$)|truncated|not a video'): read_frames(folder/make(name, folder).name, [47])

@pytest.mark.parametrize('name', [n for n in WHOLE if len(ODD_FILES[n].shown) == 48])
def test_a_cut_hits_the_frame_in_any_file(name, folder, tmp_path):
    r = ODD_FILES[name]
    for start, end in ((2.2, 3.), (.5, 2.)):
        got = normalise_clip(make(name, folder), tmp_path/'clip.mp4', start, end, short_side=64)
        numbers = read_numbers(np.rot90(read_frames(tmp_path/'clip.mp4'), -r.turn//90, axes=(1, 2)))
        assert numbers.tolist() == list(range(int(start*15 + .1), round(end*15))) and got['error'] is None and sealed(tmp_path/'clip.mp4')

def test_a_part_is_stated_everywhere(folder):
    path = make('damaged H.264', folder)
    with pytest.warns(UserWarning, match=r'only 28 frames can be read: 1.80 to 1.93 s: frame 27 is missing; frame 28 cannot be decoded'): x = read_frames(path)
    with pytest.warns(UserWarning, match='only 28'): t = frame_times(path)
    got = probe(path)
    assert len(x) == len(t) == got['frames'] == 28 and 'frame 27' in got['error'] and got['counted']
    assert (read_numbers(x) == np.rint(t*15)).all() and read_numbers(x[-1:]) == [29]   # 29 was in the decoder already: a right frame at its time
    assert (read_numbers(read_frames(path, [26, 0])) == [26, 0]).all()
    with pytest.raises(IndexError, match='frame 40 was asked for, 28 can be decoded: 1.80 to 1.93 s: frame 27 is'): read_frames(path, [3, 40])
    with pytest.raises(Damaged) as e: list(intact_frames(path))
    import pickle
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value) and e.value.reason == 'truncated'

def test_a_clip_of_a_file_damaged_near_its_end_says_so(tmp_path):
    numbered_clip(tmp_path/'a.mp4', n=60, size=(96, 128), sound=False)
    run('-i', tmp_path/'a.mp4', '-c', 'copy', '-movflags', '+faststart', tmp_path/'b.mp4')
    data = (tmp_path/'b.mp4').read_bytes()
    for cut in range(len(data) - 20, 0, -20):     # the shortest cut that costs a frame
        (tmp_path/'b.mp4').write_bytes(data[:cut])
        if probe(tmp_path/'b.mp4')['frames'] < 60: break
    got = normalise_clip(tmp_path/'b.mp4', tmp_path/'clip.mp4')
    assert 54 <= got['frames'] <= 60 and got['error']
    n = read_numbers(read_frames(tmp_path/'clip.mp4'))    # where one is lost the one before it stays on
    assert (n[:54] == np.arange(54)).all() and (n <= np.arange(len(n))).all() and (np.diff(n) >= 0).all()

def test_probe_believes_nothing(folder, tmp_path):
    got = {n: probe(make(n, folder)) for n in ('variable rate', 'claims 1000 frames', 'turned by 90', 'pixels 16:11', 'mono sound', 'VP9', '1 frame')}
    assert (got['variable rate']['constant'], got['VP9']['constant'], got['1 frame']['constant']) == (False, True, None)
    assert got['variable rate']['fps'] == pytest.approx(25/3, abs=.01) and got['VP9']['container'] == 'matroska'
    claims = got['claims 1000 frames']
    assert claims['frames'] == 48 and claims['counted'] and claims['seconds'] == 3.2 and 'it claims' in claims['error']
    believed = probe(make('claims 1000 frames', folder), count=False)
    assert believed['frames'] == 1000 and not believed['counted'] and believed['constant'] is None
    assert [(got[n]['height'], got[n]['width']) for n in ('turned by 90', 'pixels 16:11')] == [(128, 96), (96, 186)]
    assert (got['mono sound']['audio'], got['VP9']['audio']) == (True, False)
    # a header that says twice the rate: only the pictures' times count
    run('-itsscale', '2', '-i', make('Matroska', folder), '-c', 'copy', tmp_path/'slow.mkv')
    slow = probe(tmp_path/'slow.mkv')
    assert slow['fps'] == pytest.approx(7.5, rel=.01) and slow['constant']

def test_a_transfer_that_ends_in_the_header_is_asked_for_again(tmp_path):
    "Wherever in the header it ends: ffmpeg opens some of these files and finds no stream in them, or one of no known kind"
    normalise_clip(numbered_clip(tmp_path/'u.mp4', n=30, fps=15), tmp_path/'c.mp4', 0, 2)
    whole, cut = (tmp_path/'c.mp4').read_bytes(), tmp_path/'cut.mp4'
    said = set()
    for n in range(8, whole.find(b'mdat') + 8):
        cut.write_bytes(whole[:n])
        with pytest.raises(Unavailable) as e: probe(cut)
        assert e.value.reason == 'truncated', (n, str(e.value))
        said.add(e.value.detail)
    assert {'no video stream', 'Invalid data found when processing input'} < said
    # what is whole and shows nothing is no video, however often one asks: sound alone, and boxes that never end
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-f', 'lavfi', '-i', 'sine', '-t', '1', tmp_path/'sound.mp4'], check=True)
    sound = (tmp_path/'sound.mp4').read_bytes()
    (tmp_path/'boxes.mp4').write_bytes(sound + bytes([0, 0, 0, 8]) + b'free' + 2000*(bytes([0, 0, 0, 8]) + b'free'))
    for name in ('sound', 'boxes'):
        with pytest.raises(Unavailable) as e: probe(tmp_path/f'{name}.mp4')
        assert e.value.reason == 'not a video'


def test_a_clip_with_one_wrong_byte_is_not_read_the_fast_way(tmp_path):
    numbered_clip(tmp_path/'a.mp4', n=90, size=(96, 128), options={'g': '250'})
    normalise_clip(tmp_path/'a.mp4', tmp_path/'clip.mp4')
    data = (tmp_path/'clip.mp4').read_bytes()
    assert regular(tmp_path/'clip.mp4')[0] == 90
    for seed in range(12):
        rng = np.random.default_rng(seed)
        at, n = int(rng.uniform(.3, .97)*len(data)), int(rng.choice([1, 60, 400]))
        (tmp_path/'bad.mp4').write_bytes(data[:at] + bytes(255 - x for x in data[at:at+n]) + data[at+n:])
        assert sealed(tmp_path/'bad.mp4') is None and regular(tmp_path/'bad.mp4') is None
    (tmp_path/'bad.mp4').write_bytes(data.replace(encoding.SEAL_MARK.encode(), b'x'*len(encoding.SEAL_MARK)))
    assert sealed(tmp_path/'bad.mp4') is None
    run('-i', tmp_path/'clip.mp4', '-c', 'copy', '-map_metadata', '0', tmp_path/'copy.mp4')   # tools copy the comment
    assert sealed(tmp_path/'copy.mp4') is None

NATURAL = ('-f', 'lavfi', '-i', 'mandelbrot=size=160x120:rate=5,hue=h=60*t:s=2,noise=alls=15')
def coded(path, vf, *options):
    run(*NATURAL, '-frames:v', '4', '-vf', vf, *options, path)
    return path

BT2020 = 'scale=out_color_matrix=bt2020nc,format=yuv420p10le,setparams=colorspace=bt2020nc:color_primaries=bt2020'
COLOURS = {
    'BT.601': ('scale=out_color_matrix=bt601,format=yuv420p', 'libx264', '-colorspace', 'smpte170m'),
    'BT.709': ('scale=out_color_matrix=bt709,format=yuv420p', 'libx264', '-colorspace', 'bt709'),
    'full range': ('scale=out_color_matrix=bt709:out_range=pc,format=yuv420p', 'libx264', '-colorspace', 'bt709', '-color_range', 'pc'),
    'full range of JPEG': ('format=yuvj422p', 'mjpeg', '-q:v', '2', '-strict', 'unofficial'),
    '10 bits, untagged': ('format=yuv420p10le', 'libx264'),
    '10 bits, BT.709': ('scale=out_color_matrix=bt709,format=yuv420p10le', 'libx264', '-colorspace', 'bt709'),
    '10 bits, full range': ('scale=out_range=pc,format=yuv420p10le', 'libx264', '-color_range', 'pc'),
    '10 bits, 4:2:2': ('format=yuv422p10le', 'libx264'),
    '10 bits, HEVC': ('format=yuv420p10le', 'libx265', '-x265-params', 'log-level=none'),
    '10 bits, VP9': ('format=yuv420p10le', 'libvpx-vp9', '-cpu-used', '8', '-deadline', 'realtime'),
    'BT.2020, PQ': (f'{BT2020}:color_trc=smpte2084', 'libx264', '-colorspace', 'bt2020nc', '-color_trc', 'smpte2084', '-color_primaries', 'bt2020'),
    'BT.2020, HLG': (f'{BT2020}:color_trc=arib-std-b67', 'libx264', '-colorspace', 'bt2020nc', '-color_trc', 'arib-std-b67', '-color_primaries', 'bt2020'),
    '4:4:4': ('format=yuv444p', 'libx264'), 'grey': ('format=gray', 'libx264'), 'RGB': ('format=rgb24', 'libx264rgb')}

@pytest.mark.parametrize('name', COLOURS)
def test_colours_are_those_of_ffmpeg(name, tmp_path):
    vf, codec, *options = COLOURS[name]
    path = coded(tmp_path/'a.mkv', vf, '-c:v', codec, *options)
    sdr = ':out_transfer=bt709:out_primaries=bt709' if 'PQ' in name or 'HLG' in name else ''   # ffmpeg's own way from HDR to SDR
    assert worst(read_frames(path), by_ffmpeg(path, 120, 160, '-vf', f'scale=160:120{sdr}')) <= 2
    assert worst(read_frames(path, size=(60, 80)), by_ffmpeg(path, 60, 80, '-vf', f'scale=80:60:flags=bilinear{sdr}')) <= 2

@pytest.mark.parametrize('name', ['BT.709', 'full range', '10 bits, full range', 'full range of JPEG'])
def test_a_clip_has_the_colours_of_its_video(name, tmp_path):
    "Limited range, BT.601, 8 bits: within the codec's own noise, and with no shift. Both are shown by ffmpeg at its most careful"
    vf, codec, *options = COLOURS[name]
    path = tmp_path/'a.mkv'
    run('-f', 'lavfi', '-i', 'testsrc2=size=160x120:rate=5,gblur=3', '-frames:v', '4', '-vf', vf, '-c:v', codec, *options, path)
    normalise_clip(path, tmp_path/'clip.mp4', short_side=None)
    careful = ('-vf', 'scale=flags=bicubic+accurate_rnd+full_chroma_int')
    a, b = (by_ffmpeg(p, 120, 160, *careful).astype(float) for p in (path, tmp_path/'clip.mp4'))
    assert abs((a - b).mean((0, 1, 2))).max() < 1 and np.quantile(abs(a - b), .99) < 12
    with open_video(tmp_path/'clip.mp4') as (c, v):
        f = next(c.decode(v))
        assert (f.format.name, f.color_range, f.colorspace) == ('yuv420p', 1, 6)
    if has_decord(): assert worst(read_frames(tmp_path/'clip.mp4'), read_frames(tmp_path/'clip.mp4', reader='pyav')) <= 2

def test_the_plain_form(folder, tmp_path):
    for name in ('turned by 90', 'pixels 16:11', 'variable rate', 'H.264, 10 bits', 'VP9, odd size', 'sound in 6 channels', 'edit list, open GOP', 'HEVC, 10 bits'):
        got = normalise_clip(make(name, folder), tmp_path/'clip.mp4')
        with open_video(tmp_path/'clip.mp4') as (c, v):
            keys = [p.is_keyframe for p in c.demux(v) if p.size]
            assert v.codec_context.pix_fmt == 'yuv420p' and v.start_time == 0 and v.sample_aspect_ratio in (None, 1) and v.average_rate == 15, name
            assert v.width % 2 == v.height % 2 == 0 and all(keys[::15]) and got['constant'], name
            assert [a.channels for a in c.streams.audio] == ([2] if 'sound' in name else []), name
        assert b'elst' not in (tmp_path/'clip.mp4').read_bytes() and regular(tmp_path/'clip.mp4') == (got['frames'], 15, got['height'], got['width'])
    assert got['audio'] is False
    one = normalise_clip(make('mono sound', folder), tmp_path/'mono.mp4', 1, 2)
    with open_video(tmp_path/'mono.mp4') as (c, v): assert c.streams.audio[0].channels == 1 and abs(float(c.streams.audio[0].duration*c.streams.audio[0].time_base) - 1) < .06
    assert one['frames'] == 15
    double = normalise_clip(make('H.264, B-frames', folder), tmp_path/'30.mp4', 1, 2, fps=30)
    assert double['frames'] == 30 and (read_numbers(read_frames(tmp_path/'30.mp4')) == 15 + np.arange(30)//2).all()
    half = normalise_clip(make('H.264, B-frames', folder), tmp_path/'5.mp4', 1, 3, fps=5)
    assert half['frames'] == 10 and (abs(read_numbers(read_frames(tmp_path/'5.mp4')) - 15 - 3*np.arange(10)) <= 1).all()

def test_a_jump_goes_where_reading_on_would(tmp_path):
    "From the key frame before a late second on: the same frames as from the beginning"
    for codec, options, ending in (('libx264', {'x264-params': 'open-gop=1:keyint=20:bframes=3'}, 'mp4'), ('libx265', {'x265-params': 'keyint=20:log-level=none'}, 'mkv'),
                                   ('libvpx-vp9', {'g': '20', 'deadline': 'realtime', 'cpu-used': '8'}, 'webm'), ('libx264', {'g': '20'}, 'ts'), ('mpeg4', {'g': '20', 'bf': '2'}, 'avi')):
        path = numbered_clip(tmp_path/f'{codec}.{ending}', 90, 15, (96, 128), False, codec, options)
        normalise_clip(path, tmp_path/'clip.mp4', 4, 5)
        assert (read_numbers(read_frames(tmp_path/'clip.mp4')) == np.arange(60, 75)).all(), codec
        first = next(intact_frames(path, 4))
        assert first[0] <= 4 and (ending in ('ts', 'avi')) == (first[0] < .1), codec

def test_readers_that_are_not_there_say_so(folder, monkeypatch):
    path = make('H.264, GOP 16', folder)
    with pytest.raises(StudyError, match='none of auto, pyav, decord, torchcodec'): read_frames(path, reader='opencv')
    monkeypatch.setattr('kinetics_dance.video.reading.has_decord', lambda: False)
    with pytest.raises(StudyError, match='not installed'): read_frames(path, [0], reader='decord')
    monkeypatch.setitem(__import__('sys').modules, 'torchcodec.decoders', None)
    with pytest.raises(StudyError, match="'torchcodec' cannot be loaded"): read_frames(path, [0], reader='torchcodec')

def test_torchcodec(folder):
    try: import torchcodec.decoders
    except (ImportError, OSError, RuntimeError) as e: pytest.skip(f'torchcodec cannot be loaded: {str(e).splitlines()[0]}')
    for name in ('H.264, GOP 16', 'H.264, B-frames', 'VP9', 'pixels 16:11', 'turned by 90', 'AV1'):
        i, path = [40, 3, 17, 17], make(name, folder)
        x, y = (read_frames(path, i, reader=r) for r in ('torchcodec', 'pyav'))
        assert x.shape == y.shape and (read_numbers(np.rot90(x, -ODD_FILES[name].turn//90, axes=(1, 2))) == i).all(), name
        assert read_frames(path, i, size=(40, 50), reader='torchcodec').shape == (4, 40, 50, 3)


def _look(path):
    "In a process of its own: probe, frames, clip"
    import tempfile, warnings
    from pathlib import Path
    with warnings.catch_warnings(record=True) as said, tempfile.TemporaryDirectory() as d:
        warnings.simplefilter('always')
        p, clip = probe(path), Path(d)/'clip.mp4'
        made = normalise_clip(path, clip, 0, min(4, p['seconds']))
        x = read_frames(path, np.arange(min(60, p['frames'])))
        same = read_frames(path, times=np.arange(made['frames'])/made['fps'], size=(made['height'], made['width']))
        noise = abs(read_frames(clip).astype(float) - same).mean((1, 2, 3))
        return p, made, x, noise, [str(w.message) for w in said]

def media():
    if not MEDIA.is_dir(): return [pytest.param(None, marks=pytest.mark.skip(reason=f'no {MEDIA.relative_to(ROOT.parent)} beside the project'))]
    return [pytest.param(p, id=p.name) for p in sorted(MEDIA.glob('*/*.m*')) + sorted(MEDIA.glob('*/*.avi'))]

NO_VIDEO = {'bipbop_480wp_1001kbps-cenc-video-key1-init.mp4': 'truncated', 'invalid_userdata.mp4': 'truncated', 'sine-3s-xhe-aac-44khz-mono.mp4': 'not a video'}

@pytest.mark.parametrize('path', media())
def test_a_real_file(path, pool):
    if path.name in NO_VIDEO:
        for f in (probe, read_frames, frame_times):
            with pytest.raises(Unavailable, match=NO_VIDEO[path.name]): pool.schedule(f, args=(path,), timeout=LIMIT).result()
        return
    p, made, x, noise, said = pool.schedule(_look, args=(path,), timeout=LIMIT).result()
    assert p['error'] is None and not said and made['constant'] is not False and made['error'] is None
    with open_video(path) as (c, v):
        f = next(c.decode(v))
        h, w, turns, sar, stream = f.height, f.width, round(f.rotation/90), v.sample_aspect_ratio or 1, v.index
    scale = () if sar == 1 else ('-vf', f'scale={round(w*float(sar))}:{h}')
    ref = np.rot90(by_ffmpeg(path, h, round(w*float(sar)), '-map', f'0:{stream}', *scale), turns, axes=(1, 2))
    assert len(ref) == p['frames'] and x.shape[1:] == ref.shape[1:] and worst(x, ref[:len(x)]) <= 2
    assert noise.mean() < 12    # a clip of the same pictures, not of others
