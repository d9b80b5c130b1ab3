"""Each handed video that once went wrong, and relatives made here: shown as ffmpeg shows them, nothing thrown away that is not damaged."""
import subprocess, warnings
from pathlib import Path
import imageio_ffmpeg, numpy as np, pytest
from conftest import ROOT
from kinetics_dance.core.base import Unavailable
from kinetics_dance.deploy.windows import claimed_seconds
from kinetics_dance.video.decoding import Damaged, intact_frames, numbered_clip, probe, read_numbers
from kinetics_dance.video.encoding import normalise_clip
from kinetics_dance.video.odd_files import odd_file
from kinetics_dance.video.reading import frame_times, read_frames

CASES = ROOT.parent/'shared/data/cases'
FFMPEG = [imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-nostdin', '-y']

def run(*args): return subprocess.run([*FFMPEG, *map(str, args)], check=True, capture_output=True).stdout

def as_ffmpeg_shows(path, h, w, *options):
    "Every frame as the command line tool shows it: turned, mirrored, in RGB"
    x = run('-i', path, *options, '-fps_mode', 'passthrough', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-')
    return np.frombuffer(x, np.uint8).reshape(-1, h, w, 3)

def quietly(f, *args, **kwargs):
    "Its result, and the warnings as text"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        return f(*args, **kwargs), ' '.join(str(w.message) for w in said if issubclass(w.category, UserWarning))

# name: (how many frames, a word of warning or of the error)
HANDED = {
    'mirrored_display_matrix/hflip.mp4': (60, ''), 'mirrored_display_matrix/vflip.mov': (60, ''),
    'mirrored_display_matrix/rot90_hflip.mp4': (60, ''),
    'variable_rate_in_mpeg_ts/vfr.ts': (25, ''), 'variable_rate_in_mpeg_ts/gap.ts': (58, ''),
    'sei_that_says_too_much/sei.mp4': (60, ''), 'sei_that_says_too_much/sei.ts': (60, ''),
    'sound_longer_than_picture/longsound.mkv': (45, ''), 'sound_longer_than_picture/longsound.webm': (45, ''),
    'sound_longer_than_picture/longsound.flv': (45, ''),
    'camcorder_and_other_endings/A.MTS': (60, ''), 'gif_and_other_containers/a.gif': (60, ''), 'gif_and_other_containers/a.webp': (60, ''),
    # both files name the matrix BT.2020 and no transfer function: nobody can say whether they are HLG or PQ, but one can say that
    'hdr_without_tone_mapping/hdr_hlg.mov': (30, 'does not say which transfer function'),
    'hdr_without_tone_mapping/hdr_pq.mov': (30, 'does not say which transfer function'), 'hdr_without_tone_mapping/sdr.mp4': (30, ''),
    'song_with_cover/song.m4a': (None, 'not a video: sound and a cover picture, no video'),
    'gif_and_other_containers/list.m3u8': (None, 'not a video: a playlist (m3u8)')}

@pytest.mark.skipif(not CASES.is_dir(), reason='no shared/data/cases beside the project')
@pytest.mark.parametrize('name', HANDED)
def test_a_handed_case(name, tmp_path):
    path, (n, word) = CASES/name, HANDED[name]
    if n is None:
        for f in (probe, read_frames, lambda p: normalise_clip(p, tmp_path/'clip.mp4')):
            with pytest.raises(Unavailable) as e: f(path)
            assert word in str(e.value)
        return
    x, said = quietly(read_frames, path)
    assert len(x) == n and (word in said if word else not said)
    if path.suffix != '.webp':     # the newest ffmpeg reads it, the one of PyAV does not
        assert abs(x.astype(int) - as_ffmpeg_shows(path, *x.shape[1:3])).max() <= 2
    got = normalise_clip(path, tmp_path/'clip.mp4')
    assert (word in got['error'] if word else got['error'] is None)
    long = probe(path)['seconds']
    assert abs(got['seconds'] - long) < .1 and abs(claimed_seconds(path) - long) < .1

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A clip of 60 numbered frames with a key frame each second, and without loss"
    d = tmp_path_factory.mktemp('made')
    numbered_clip(d/'raw.mkv', 60, 15, (96, 128), sound=False, codec='ffv1')
    run('-i', d/'raw.mkv', '-c:v', 'libx264', '-g', '15', '-bf', '2', d/'base.mp4')
    return d

@pytest.mark.parametrize('turn', [0, 90, 180, 270])
@pytest.mark.parametrize('mirror', ['', '-display_hflip', '-display_vflip', '-display_hflip -display_vflip'])
def test_the_whole_display_matrix(turn, mirror, made, tmp_path):
    path = tmp_path/'a.mp4'
    run('-display_rotation', turn, *mirror.split(), '-i', made/'base.mp4', '-c', 'copy', path)
    x = read_frames(path, [0, 21])
    assert x.shape[1:3] == ((128, 96) if turn % 180 else (96, 128))
    assert (x == as_ffmpeg_shows(path, *x.shape[1:3])[[0, 21]]).all()

def test_an_odd_angle_is_shown_at_the_nearest_quarter_turn_and_said(made, tmp_path):
    run('-display_rotation', '100', '-i', made/'base.mp4', '-c', 'copy', tmp_path/'a.mov')
    x, said = quietly(read_frames, tmp_path/'a.mov')
    assert '10° off a quarter turn' in said and (read_numbers(np.rot90(x, -1, axes=(1, 2))) == np.arange(60)).all()
    assert '10° off' in normalise_clip(tmp_path/'a.mov', tmp_path/'clip.mp4')['error']

@pytest.mark.parametrize('ratio', ['16/11', '8/9', '2/1'])
def test_pixels_that_are_not_square(ratio, made, tmp_path):
    run('-i', made/'raw.mkv', '-vf', f'setsar={ratio}', '-c:v', 'libx264', tmp_path/'a.mkv')
    x = read_frames(tmp_path/'a.mkv', [0, 30])
    w = round(128*eval(ratio))
    assert x.shape[1:3] == (96, w) and abs(x.astype(int) - as_ffmpeg_shows(tmp_path/'a.mkv', 96, w, '-vf', f'scale={w}:96')[[0, 30]]).max() <= 2

@pytest.mark.parametrize('curve', ['smpte2084', 'arib-std-b67'])
def test_hdr_becomes_sdr_as_ffmpeg_makes_it(curve, tmp_path):
    path = tmp_path/'a.mov'
    run('-f', 'lavfi', '-i', 'testsrc2=size=160x120:rate=5,gblur=2', '-frames:v', '4', '-vf',
        f'scale=out_color_matrix=bt2020nc,format=yuv420p10le,setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc={curve}',
        '-c:v', 'libx265', '-x265-params', 'log-level=none', path)
    x, said = quietly(read_frames, path)
    plain, mapped = (as_ffmpeg_shows(path, 120, 160, '-vf', f'scale=160:120{o}') for o in ('', ':out_transfer=bt709:out_primaries=bt709'))
    assert not said and abs(x.astype(int) - mapped).max() <= 2 and abs(mapped - plain.astype(float)).mean() > 10
    normalise_clip(path, tmp_path/'clip.mp4')
    y = read_frames(tmp_path/'clip.mp4').astype(float)
    assert abs(y.mean() - x.mean()) < 3 < abs(y - plain).mean()

ENDINGS = {'gif': '', 'apng': '', 'mxf': '-c:v mpeg2video -q:v 3 -r 25', 'dv': '-s 720x576 -r 25 -pix_fmt yuv420p', 'h264': '-c:v libx264', 'hevc': '-c:v libx265 -x265-params log-level=none',
           'ivf': '-c:v libvpx', 'nut': '-c:v libx264', 'y4m': '', 'rm': '-c:v rv20 -q:v 2', 'mjpeg': '-c:v mjpeg -q:v 2 -f mjpeg', 'obu': '-c:v libsvtav1 -preset 12', 'ogv': '-c:v libtheora', 'wmv': '-c:v wmv2',
           'm2ts': '-c:v libx264', 'vob': '-c:v mpeg2video -q:v 3 -r 25', '3g2': '-c:v libx264', 'm4v': '-c:v mpeg4', 'f4v': '-c:v libx264'}

@pytest.mark.parametrize('ending', ENDINGS)
def test_what_ffmpeg_reads_as_video_is_video(ending, made, tmp_path):
    path = tmp_path/f'a.{ending}'
    try: run('-i', made/'raw.mkv', *ENDINGS[ending].split(), '-strict', 'unofficial', path)
    except subprocess.CalledProcessError as e: pytest.skip(e.stderr.decode()[-80:])
    x, said = quietly(read_frames, path)
    assert not said and len(x) == len(as_ffmpeg_shows(path, *([576, 720] if ending == 'dv' else x.shape[1:3])))
    assert set(read_numbers(x)) == set(range(60)) and (np.diff(read_numbers(x)) >= 0).all()
    from kinetics_dance.clips.annotations import VIDEO_SUFFIXES
    assert path.suffix in VIDEO_SUFFIXES

def test_joined_streams_are_one_video(made, tmp_path):
    run('-i', made/'base.mp4', '-c', 'copy', tmp_path/'a.ts')
    one = (tmp_path/'a.ts').read_bytes()
    (tmp_path/'joined.ts').write_bytes(one*3)
    x, said = quietly(read_frames, tmp_path/'joined.ts')
    assert not said and (read_numbers(x) == [*range(60)]*3).all()
    assert np.allclose(np.diff(frame_times(tmp_path/'joined.ts')), 1/15, atol=.002)

def test_variable_rate_with_a_transparent_picture(made, tmp_path):
    run('-i', made/'raw.mkv', '-c:v', 'libvpx-vp9', '-pix_fmt', 'yuva420p', '-deadline', 'realtime', '-cpu-used', '8', '-vf', 'select=lt(n\\,8)+not(mod(n\\,3))', '-fps_mode', 'vfr', tmp_path/'a.webm')
    x, said = quietly(read_frames, tmp_path/'a.webm')
    assert not said and read_numbers(x).tolist() == [i for i in range(60) if i < 8 or i % 3 == 0]

def test_one_lost_packet_costs_the_frames_up_to_the_next_key_frame(made, tmp_path):
    run('-i', made/'base.mp4', '-c', 'copy', tmp_path/'a.ts')
    whole = (tmp_path/'a.ts').read_bytes()
    packets = [whole[i:i+188] for i in range(0, len(whole), 188)]
    video = [i for i, p in enumerate(packets) if (p[1] & 31) << 8 | p[2] == 256]
    (tmp_path/'lost.ts').write_bytes(b''.join(p for i, p in enumerate(packets) if i != video[len(video)//2]))
    (x, said), t = quietly(read_frames, tmp_path/'lost.ts'), quietly(frame_times, tmp_path/'lost.ts')[0]
    numbers = read_numbers(x)
    assert (numbers == np.rint(t*15)).all() and 44 <= len(x) < 60 and numbers[-1] == 59 and ' s: ' in said
    got = normalise_clip(tmp_path/'lost.ts', tmp_path/'clip.mp4')
    n = read_numbers(read_frames(tmp_path/'clip.mp4'))
    assert ' s: ' in got['error'] and len(n) == 60 and (n <= np.arange(60)).all() and set(n) == set(numbers)
    with pytest.warns(UserWarning, match='numbered without those that are lost'): read_frames(tmp_path/'lost.ts', [len(x) - 1])

def test_a_cover_beside_a_video_is_not_the_video(made, tmp_path):
    run('-f', 'lavfi', '-i', 'color=red:s=640x640:d=0.1', '-frames:v', '1', tmp_path/'c.jpg')
    run('-i', tmp_path/'c.jpg', '-i', made/'base.mp4', '-map', '0', '-map', '1:v', '-c', 'copy', '-disposition:v:0', 'attached_pic', tmp_path/'a.mp4')
    assert (read_numbers(read_frames(tmp_path/'a.mp4')) == np.arange(60)).all()

@pytest.mark.parametrize('name, head', [('list.m3u8', b'#EXTM3U\n#EXTINF:4,\na.ts\n'), ('a.png', b'\x89PNG\r\n\x1a\n' + bytes(50)), ('page.mp4', b'<!DOCTYPE html><p>gone')])
def test_what_is_no_video_is_called_by_its_name(name, head, tmp_path):
    (tmp_path/name).write_bytes(head)
    with pytest.raises(Unavailable, match='not a video: a (playlist|still picture|web page)'): probe(tmp_path/name)

def spoilt(data, rng):
    "A relative: some bytes are noise, zeros, gone, doubled or the rest is cut off"
    at, n = int(rng.uniform(.02, .98)*len(data)), int(rng.choice([1, 8, 188, 1500]))
    kind = rng.integers(5)
    middle = (rng.bytes(n), bytes(n), b'', data[at:at+n]*2, None)[kind]
    return data[:at] if middle is None else data[:at] + middle + data[at+n:]

SOURCES = {'mp4': '-c:v libx264 -g 15 -bf 2', 'mkv': '-c:v libx264 -g 15 -bf 2', 'ts': '-c:v libx264 -g 15 -bf 2', 'flv': '-c:v libx264 -g 15', 'avi': '-c:v mpeg4 -g 15 -q:v 3', 'webm': '-c:v libvpx-vp9 -g 15 -deadline realtime -cpu-used 8'}

def relative(ending, seed, folder):
    "(numbers of the frames read, their times, what was said), or the error, and the numbers of ffmpeg's frames"
    source = folder/f'source.{ending}'
    if not source.exists():
        run('-i', folder/'raw.mkv', *SOURCES[ending].split(), source)
    path = folder/f'{seed}.{ending}'
    path.write_bytes(spoilt(source.read_bytes(), np.random.default_rng(seed)))
    done = subprocess.run([*FFMPEG, '-i', str(path), '-map', '0:v:0', '-s', '128x96', '-fps_mode', 'passthrough', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-'], capture_output=True).stdout
    theirs = read_numbers(np.frombuffer(done[:len(done)//36864*36864], np.uint8).reshape(-1, 96, 128, 3)).tolist()
    try: (x, said), t = quietly(read_frames, path), quietly(frame_times, path)[0]
    except Unavailable as e: return [], [], str(e), theirs
    return read_numbers(x).tolist(), t, said, theirs

@pytest.mark.parametrize('seed', range(12))
def test_a_relative_of_a_damaged_file(seed, made):
    ours, t, said, theirs = relative(list(SOURCES)[seed % 6], seed, made)
    assert sorted(set(ours)) == ours and set(ours) <= set(range(60)), 'a wrong frame'
    assert said or len(ours) == 60, 'a loss without a word'
