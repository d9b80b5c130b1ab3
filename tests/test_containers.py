"""What lies between the packets, the edges that are not shown, and letters in a film: each fault was silent before."""
import subprocess
import imageio_ffmpeg, numpy as np, pytest
from kinetics_dance.core.base import Unavailable
from kinetics_dance.deploy.overlay import _caption
from kinetics_dance.video.containers import chain_of
from kinetics_dance.video.decoding import Damaged, intact_frames, numbered_clip, probe, read_numbers
from kinetics_dance.video.encoding import normalise_clip
from kinetics_dance.video.reading import frame_times, read_frames
from test_odd_video import quietly

FFMPEG = [imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-nostdin', '-y']
H264 = '-c:v libx264 -g 15 -bf 2'
VP8 = '-c:v libvpx -g 15 -deadline realtime -cpu-used 8'
TONE = '-f lavfi -i sine=duration=4'
SOURCES = {'mkv': H264, 'flv': '-c:v libx264 -g 15', 'ts': H264, 'ogv': '-c:v libtheora -q:v 8 -g 15', 'wmv': '-c:v wmv2 -q:v 3 -g 15', 'webm': VP8,
           'frag.mp4': f'{H264} -movflags +frag_keyframe+empty_moov+default_base_moof', 'avi': '-c:v mpeg4 -g 15 -q:v 3', 's.avi': f'{TONE} -c:v mpeg4 -g 15 -q:v 3 -c:a libmp3lame',
           's.flv': f'{TONE} -c:v libx264 -g 15 -c:a aac', 's.ts': f'{TONE} {H264} -c:a aac', 's.mkv': f'{TONE} {H264} -c:a aac'}

def run(*args): return subprocess.run([*FFMPEG, *map(str, args)], check=True, capture_output=True).stdout

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    d = tmp_path_factory.mktemp('made')
    numbered_clip(d/'raw.mkv', 60, 15, (96, 128), sound=False, codec='ffv1')
    return d

def source(folder, ending):
    path = folder/f'source.{ending}'
    if not path.exists(): run('-i', folder/'raw.mkv', *SOURCES[ending].split(), path)
    return path

@pytest.mark.parametrize('ending', SOURCES)
def test_a_whole_file_has_no_hole(ending, made):
    x, said = quietly(read_frames, source(made, ending))
    assert not said and (read_numbers(x) == np.arange(60)).all()

def spoilt(data, kind, at, n):
    a = int(at*len(data))
    middle = dict(noise=np.random.default_rng(0).bytes(n), zeros=bytes(n), gone=b'', twice=data[a:a + n]*2).get(kind)
    return data[:a] if kind == 'cut' else data[:a] + middle + data[a + n:]

@pytest.mark.parametrize('at', [.3, .55, .8])
@pytest.mark.parametrize('kind, n', [('gone', 188), ('gone', 1500), ('twice', 1500), ('zeros', 1500), ('noise', 6000), ('cut', 0)])
@pytest.mark.parametrize('ending', ['mkv', 'flv', 's.flv', 's.ts', 'ts', 'wmv', 'ogv', 'frag.mp4', 's.mkv', 's.avi'])
def test_a_loss_is_said_and_no_frame_is_wrong(ending, kind, n, at, made, tmp_path):
    if (ending, kind) in (('wmv', 'zeros'), ('wmv', 'noise'), ('wmv', 'twice'), ('s.avi', 'twice'), ('ogv', 'twice')): pytest.skip('no container and no decoder of it can tell')
    path = tmp_path/f'a.{ending}'
    path.write_bytes(spoilt(source(made, ending).read_bytes(), kind, at, n))
    try: (x, said), t = quietly(read_frames, path), quietly(frame_times, path)[0]
    except Unavailable: return
    numbers = read_numbers(x)
    assert (np.diff(numbers) > 0).all() and numbers.max() < 60, f'a wrong frame: {numbers.tolist()}'
    assert said or len(numbers) == 60, 'a loss without a word'
    if not ending.endswith('avi') and ending not in ('ogv',): assert abs((numbers - numbers[0]) - (t - t[0])*15).max() < .6, 'a wrong time'

def test_a_webm_without_its_beginning(made, tmp_path):
    data = source(made, 'webm').read_bytes()
    first = data.index(b'\x1f\x43\xb6\x75')
    later = data.index(b'\x1f\x43\xb6\x75', first + 4) if data.count(b'\x1f\x43\xb6\x75') > 1 else first + len(data)//2
    (tmp_path/'a.webm').write_bytes(data[:first] + np.random.default_rng(0).bytes(later - first) + data[later:])
    try: x, said = quietly(read_frames, tmp_path/'a.webm')
    except Unavailable as e: said = str(e)
    assert 'bytes before frame 0 belong to no packet' in said

def test_the_seconds_of_a_loss_count_from_where_the_file_begins(made, tmp_path):
    "A transport stream begins at 1.4 s: each loss seemed that much longer"
    (tmp_path/'a.ts').write_bytes(spoilt(source(made, 'ts').read_bytes(), 'gone', .3, 188))
    lost, n = [], 0
    with pytest.raises(Damaged):
        for n, _ in enumerate(intact_frames(tmp_path/'a.ts', lost=lost), 1): pass
    assert abs(n + 15*sum(until - since for since, until, _ in lost) - 60) < 1

def test_a_stream_that_no_header_named(made, tmp_path):
    path, (name, data) = tmp_path/'a.flv', ('s.flv', source(made, 's.flv').read_bytes())
    with chain_of(source(made, name)) as chain: first = chain.first()
    tag = b'\x08\0\0\x04\0\0\x05\0\0\0\0' + b'\xaf\1\0\0' + (15).to_bytes(4, 'big')
    silent = source(made, 'flv').read_bytes()
    path.write_bytes(silent[:first] + silent[first:] + tag*3) # the header says: no sound
    x, said = quietly(read_frames, path)
    assert len(x) == 60 and data

def with_aperture(data, wide, high, right=0, down=0):
    "An MP4 whose header, at the end, has a clean aperture"
    numbers = wide, 1, high, 1, right, 1, down, 1
    box = b'\0\0\0\x28clap' + b''.join((x & 0xffffffff).to_bytes(4, 'big') for x in numbers)
    at = data.index(b'avc1', data.index(b'stsd')) - 4
    end = at + int.from_bytes(data[at:at + 4], 'big')
    out = bytearray(data[:end] + box + data[end:])
    for name in (b'moov', b'trak', b'mdia', b'minf', b'stbl', b'stsd', b'avc1'):
        i = data.index(name, data.index(b'moov')) - 4
        out[i:i + 4] = (int.from_bytes(data[i:i + 4], 'big') + 40).to_bytes(4, 'big')
    return bytes(out)

@pytest.mark.parametrize('aperture, size', [((96, 64), (64, 96)), ((96, 64, 8, -4), (64, 96)), ((300, 300), (96, 128)), ((0, 0), (96, 128))])
@pytest.mark.parametrize('ending, turn', [('mp4', 0), ('mov', 90), ('mkv', 0)])
def test_edges_that_players_cut_off(aperture, size, ending, turn, made, tmp_path):
    run('-i', made/'raw.mkv', *H264.split(), tmp_path/'plain.mp4')
    (tmp_path/'a.mp4').write_bytes(with_aperture((tmp_path/'plain.mp4').read_bytes(), *aperture))
    path = tmp_path/f'b.{ending}'
    run('-display_rotation', turn, '-i', tmp_path/'a.mp4', '-c', 'copy', path)
    h, w = size[::-1] if turn else size
    theirs = np.frombuffer(run('-i', path, '-fps_mode', 'passthrough', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-'), np.uint8).reshape(60, h, w, 3)
    assert abs(read_frames(path).astype(int) - theirs).max() <= 2
    p, clip = probe(path), normalise_clip(path, tmp_path/'clip.mp4')
    assert (p['height'], p['width']) == (h, w) == (clip['height'], clip['width'])

@pytest.mark.parametrize('text', ['танец', 'χορός', 'salsa é', 'żółć'])
def test_letters_in_a_film_are_no_boxes(text):
    "Each letter has a picture of its own; boxes are all alike"
    drawn = {c: _caption([c*3], [0.], 240, 320)[0].tobytes() for c in set(text) if not c.isspace()}
    assert len(set(drawn.values())) == len(drawn)
    box = _caption(['\U0010fffd'*3], [0.], 240, 320)[0].tobytes()
    assert box not in drawn.values()
