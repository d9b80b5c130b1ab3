"""The page Try it yourself, in a real browser: on the tests' study of two dances, with small graphs in the place of its models,
and once with models as they are exported. The runtime comes from the cache that `make site` fills; without it these are skipped."""
import contextlib, functools, html, http.server, json, re, shutil, threading, time
import numpy as np
import pytest
from conftest import tiny_study
from report import polish, try_it

try: RUNTIME = try_it.archive()
except try_it.NoPage: RUNTIME = None
CHROMIUM = next((p for n in ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable') if (p := shutil.which(n))), None)
in_browser = pytest.mark.skipif(not (RUNTIME and CHROMIUM), reason='no browser, or onnxruntime-web is not in the cache: `make site` fetches it')
T, CROP = 4, (44, 60)


def config(classes, **more):
    return dict(format=1, classes=classes, frames=T, crop=list(CROP), clip_seconds=3., stored=dict(height=48, width=64, n_frames=8)) | more


def graph(weights):
    "ONNX of a model whose first class is as probable as the frames are bright, each with its weight"
    from onnx import TensorProto, helper as h
    def const(name, x): return h.make_tensor(name, TensorProto.FLOAT if x.dtype == np.float32 else TensorProto.INT64, x.shape, x.ravel())
    w = np.asarray(weights, np.float32)
    nodes = [h.make_node('Cast', ['frames'], ['x'], to=TensorProto.FLOAT), h.make_node('ReduceMean', ['x', 'axes'], ['m'], keepdims=0),
             h.make_node('MatMul', ['m', 'w'], ['p']), h.make_node('Sub', ['one', 'p'], ['q']), h.make_node('Concat', ['p', 'q'], ['probabilities'], axis=1)]
    consts = [const('axes', np.array([2, 3, 4])), const('w', w[:, None]/w.sum()/255), const('one', np.ones(1, np.float32))]
    g = h.make_graph(nodes, 'g', [h.make_tensor_value_info('frames', TensorProto.UINT8, ['batch', T, *CROP, 3])],
                     [h.make_tensor_value_info('probabilities', TensorProto.FLOAT, ['batch', 2])], consts)
    return h.make_model(g, opset_imports=[h.make_opsetid('', 18)], ir_version=9).SerializeToString()


GRAPHS = dict(per_frame=[1]*T, cnn_lstm=range(1, T + 1), video_transformer=[1, 0, 0, 0])


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "The folder of a study of two dances, with files in the place of weights"
    folder = tiny_study(tmp_path_factory.mktemp('runs'), ('windmill', 'bounce'))/'tiny'
    from kinetics_dance.clips.table import ClipTable
    t = ClipTable(folder/'clips.sqlite').frame()
    t.to_csv(folder/'clips.csv', index=False)
    for m in GRAPHS:
        at = folder/'models'/m/'seed0'
        at.mkdir(parents=True)
        (at/'model.safetensors').write_bytes(b'weights')
        (at/'config.json').write_text(json.dumps(config(sorted(t.label.unique()))))
    return folder


def write_page(out, folder):
    "The page as the site has it, without what Sphinx puts around it"
    files, about = try_it.material(folder)
    (out/try_it.FOLDER).mkdir(parents=True)
    for name, text in files.items(): (out/try_it.FOLDER/name).write_text(text)
    for name in ('try_it.js', 'try_it.css'): shutil.copy(try_it.HERE/name, out/try_it.FOLDER)
    text = try_it.page('tiny', about, True)
    body = re.sub(r'````\{raw\} html\n(.*?)\n````', r'\1', text, flags=re.S)
    body = re.sub(r'^(#+) (.*)$', lambda m: f'<h{len(m[1])}>{m[2]}</h{len(m[1])}>', body, flags=re.M)
    (out/f'{try_it.PAGE}.html').write_text('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Try</title></head>'
                                           f'<body><main class="content">{body}</main></body></html>')
    polish.protect(out)
    return out/f'{try_it.PAGE}.html'


@pytest.fixture(scope='module')
def page_file(study, tmp_path_factory):
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(try_it, 'exported', lambda m, at, folder: graph(GRAPHS[m]))
        return write_page(tmp_path_factory.mktemp('site'), study)


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--allow-file-access-from-files=false'])
        yield b
        b.close()


class Tab:
    "A page with what went wrong on it and what it asked for"
    def __init__(self, browser, url, **kw):
        self.context = browser.new_context(viewport=dict(width=390, height=844), **kw)
        self.page, self.wrong, self.asked = self.context.new_page(), [], []
        self.page.set_default_timeout(90_000)
        self.page.on('console', lambda m: m.type == 'error' and self.wrong.append(m.text))
        self.page.on('pageerror', lambda e: self.wrong.append(str(e)))
        self.page.on('request', lambda r: self.asked.append(r.url))
        self.page.goto(url)

    def until(self, expression, arg=None, seconds=90):
        "Wait for an expression; `wait_for_function` evaluates in the page, which its policy does not allow"
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression, arg):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(20)

    def shows(self, where, text): self.until("([w, t]) => document.querySelector(w).textContent.includes(t)", [where, text])

    def load(self):
        self.page.click('#try-load')
        self.page.wait_for_selector('#try-bars .try-number:not(:empty)')
        return self

    def answered(self, act):
        "What the bars say after an action: {model: [true, rival]}"
        before = self.page.get_attribute('#try-it', 'data-turn')
        act()
        self.until(f"document.getElementById('try-it').dataset.turn !== '{before}'")
        return self.bars()

    def bars(self): return self.page.evaluate("Object.fromEntries(tryIt.study.models.map(m => [m.name, [...document.querySelectorAll(`#try-of-${m.name} .try-number`)].map(e => parseFloat(e.textContent))]))")
    def row(self): return self.page.locator('#try-row button').evaluate_all("l => l.map(b => b.innerText.trim())")
    def said(self, where='#try-said'): return self.page.inner_text(where)
    def do(self, name): return self.answered(lambda: self.page.click(f'#try-clip [data-do={name}]'))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *a): pass


@contextlib.contextmanager
def served(page_file):
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(page_file.parent)))
    threading.Thread(target=s.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{s.server_port}'
    finally: s.shutdown(); s.server_close()


@pytest.fixture
def tab(browser, page_file):
    t = Tab(browser, page_file.as_uri())
    yield t
    t.context.close()


@in_browser
def test_the_vote_does_not_move(tab):
    "By buttons: what the vote says stays when frames change places, and only then; what does not is told, beside the step, too"
    assert len(tab.asked) < 6 and not [u for u in tab.asked if 'wasm' in u or 'model' in u]
    tab.load()
    assert tab.row() == ['1', '2', '3', '4']
    filmed = tab.bars()
    back = tab.do('reverse')
    assert tab.row() == ['4', '3', '2', '1'] and back['per_frame'] == filmed['per_frame'] and back['video_transformer'] != filmed['video_transformer']
    assert 'per-frame vote does not move' in tab.said()
    assert 'Found: per-frame vote does not move' in tab.page.inner_text('[data-step=reverse] .try-found')
    mixed = tab.do('shuffle')
    assert sorted(tab.row()) == ['1', '2', '3', '4'] and tab.row() != ['4', '3', '2', '1'] and mixed['per_frame'] == filmed['per_frame']
    assert tab.do('filmed') == filmed and tab.row() == ['1', '2', '3', '4']
    assert tab.do('speed') and tab.row() == ['1', '3', '1', '3']
    tab.do('filmed'); tab.page.click('#try-row button >> nth=3')
    one = tab.do('repeat')
    assert tab.row() == ['4']*4 and one['per_frame'] == one['cnn_lstm'] == one['video_transformer']
    tab.do('filmed'); tab.page.click('#try-row button >> nth=1')
    tab.do('drop')
    assert tab.row() == ['1', '3', '4']
    tab.do('drop'); tab.do('drop'); tab.page.click('#try-clip [data-do=drop]')
    assert len(tab.row()) == 1 and 'One frame has to stay' in tab.said()
    assert tab.answered(lambda: tab.page.click('.try-steps [data-do=reverse]')) == back and tab.row() == ['4', '3', '2', '1']
    assert not tab.wrong


@in_browser
def test_by_keyboard_and_by_mouse(tab):
    tab.load()
    tab.page.focus('#try-row button >> nth=0')
    press = tab.page.keyboard.press
    press('ArrowRight')
    assert tab.page.evaluate("document.activeElement.getAttribute('aria-label')") == 'frame 2, at place 2 of 4'
    tab.answered(lambda: press('Alt+ArrowRight'))
    assert tab.row() == ['1', '3', '2', '4'] and tab.page.evaluate("document.activeElement.getAttribute('aria-label')") == 'frame 2, at place 3 of 4'
    tab.answered(lambda: press('Delete'))
    assert tab.row() == ['1', '3', '4']
    tab.answered(lambda: press('Enter'))
    assert tab.row() == ['4', '4', '4']
    tab.do('filmed')
    tab.page.locator('#try-row').scroll_into_view_if_needed()
    a, b = (tab.page.locator('#try-row button').nth(i).bounding_box() for i in (0, 2))
    tab.page.mouse.move(a['x'] + 20, a['y'] + 20); tab.page.mouse.down()
    tab.page.mouse.move(b['x'] + 20, b['y'] + 20, steps=8)
    tab.answered(tab.page.mouse.up)
    assert tab.row() == ['2', '3', '1', '4'] and not tab.wrong


@in_browser
def test_on_a_phone_by_screen_reader_and_from_a_server(tab, browser, page_file):
    "Nothing sticks out at 390 px; axe has nothing to say; a server's page does the same and asks nobody else"
    axe = pytest.importorskip('axe_playwright_python.sync_playwright').Axe()
    with served(page_file) as address:
        other = Tab(browser, f'{address}/{page_file.name}')
        other.load()
        assert other.bars() == tab.load().bars()
        assert all(u.startswith((f'{address}/', 'data:', 'blob:')) for u in other.asked)
        assert not [w for w in other.wrong if 'favicon' not in w and '404' not in w]
        other.context.close()
    tab.page.click('#try-start'); tab.page.wait_for_selector('#try-answers button')
    assert tab.page.evaluate('document.documentElement.scrollWidth') <= 390
    found = axe.run(tab.page, options={'resultTypes': ['violations'], 'rules': {'color-contrast': {'enabled': False}}}).response['violations']
    assert not [v['id'] for v in found if v['impact'] in ('serious', 'critical')], found


@in_browser
def test_guess_first(tab):
    tab.page.click('#try-start')
    n = tab.page.evaluate('tryIt.study.guesses.length')
    assert n
    for i in range(n):
        for asked in ('a single frame', 'the clip it is from'):
            tab.shows('#try-question', f'Clip {i + 1} of {n}, {asked}')
            tab.page.locator('#try-answers button').first.click()
    assert 'That was the last one' in tab.said('#try-question') and re.search(rf'\d of {n}, [\d.]+ % \[[\d.]+ %, [\d.]+ %\]', tab.said('#try-scores'))
    assert 'CNN-LSTM' in tab.said('#try-scores') and not tab.wrong


@in_browser
def test_a_video_stays_here(tab, study, tmp_path):
    "A dropped video is decoded and watched; no request is made for it. What is none is told in a sentence, and the next one is watched"
    tab.load()
    tab.asked.clear()
    def drop(path, until='window'):
        tab.page.set_input_files('#try-file', str(path))
        tab.shows('#try-watched', until)
        return tab.said('#try-watched')
    (tmp_path/'text.mp4').write_text('no video')
    assert 'text.mp4: this browser cannot decode it' in drop(tmp_path/'text.mp4', 'text.mp4')
    video = sorted((study/'videos').glob('*_000000_*.mp4'))[0]
    assert '1 window over 3.0 seconds' in drop(video) and 'Nothing moves' not in tab.said('#try-watched')
    assert tab.page.locator('#try-over-time figure').count() == 3
    found = np.array(tab.page.evaluate('tryIt.watched.probabilities.per_frame'))
    assert abs(found[0, 0] - np.mean(by_library(video))/255) < 1e-4
    assert not [u for u in tab.asked if not u.startswith(('blob:', 'data:'))]


def by_library(video):
    "Frames of the first window of a video, as `predict` sees them"
    from kinetics_dance.deploy.windows import watch
    seen = [np.frombuffer(d, np.uint8).reshape(*CROP, 3) for h, d in watch(str(video), T, 3., 3., (48, 64), CROP) if h['kind'] == 'frame']
    return np.stack(seen[:T])


WATCHED = "tryIt.watched.frames[0].map(f => [...f])"


def patterns(path, size, codec='libx264', seconds=3, rate=10, pixels='yuv420p', options=None, sound=False):
    "A video of coloured stripes that move"
    import av
    h, w = size
    y, x = np.mgrid[:h, :w]
    with av.open(str(path), 'w') as f:
        s = f.add_stream(codec, rate=rate, options=options or {}); s.width, s.height, s.pix_fmt = w, h, pixels
        a = f.add_stream('aac', rate=44100) if sound else None
        for k in range(seconds*rate):
            rgb = np.stack([127 + 120*np.sin(x/9 + k), 127 + 120*np.sin(y/7 - k/2), 127 + 120*np.sin((x + y)/11 + k/3)], -1).astype('uint8')
            f.mux(s.encode(av.VideoFrame.from_ndarray(rgb, format='rgb24')))
        f.mux(s.encode())
        if a:
            for k in range(40):
                sounds = av.AudioFrame.from_ndarray(np.zeros((1, 1024), 'float32'), format='fltp', layout='mono')
                sounds.sample_rate, sounds.pts = 44100, 1024*k
                f.mux(a.encode(sounds))
            f.mux(a.encode())
    return path


@in_browser
@pytest.mark.parametrize('name,more,apart', [
    ('even.mp4', dict(size=(192, 256)), .02), ('wide.mp4', dict(size=(180, 426), rate=7), .05), ('tall.mp4', dict(size=(320, 180)), .05), ('small.mp4', dict(size=(32, 40)), .05),
    ('vp9.webm', dict(size=(120, 214), codec='libvpx-vp9', options=dict(deadline='realtime')), .05), ('full.mp4', dict(size=(192, 256), pixels='yuvj420p'), .05),
    ('own_colours.mp4', dict(size=(192, 256), pixels='yuv444p'), .05)])
def test_a_dropped_frame_is_the_librarys(tab, tmp_path, name, more, apart):
    "Frames that the page decodes are those of `predict`, whatever the shape and form of the video: almost all pixels equal"
    video = patterns(tmp_path/name, **more)
    tab.page.set_input_files('#try-file', str(video))
    tab.shows('#try-watched', 'window')
    off = np.abs(np.array(tab.page.evaluate(WATCHED)).reshape(T, *CROP, 3) - by_library(video).astype(int))
    assert off.mean() < apart and off.max() <= 4, (off.mean(), off.max())


@in_browser
@pytest.mark.parametrize('quarters', [1, 2, 3])
def test_a_phone_that_was_turned(tab, tmp_path, quarters):
    "The library scales such a video as it lies in the file and turns it then; so does the page"
    import subprocess
    import imageio_ffmpeg
    lying = patterns(tmp_path/'lying.mp4', (180, 320))
    video = tmp_path/'turned.mp4'
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-display_rotation', str(90*quarters), '-i', lying, '-c', 'copy', video], check=True)
    tab.page.set_input_files('#try-file', str(video))
    tab.shows('#try-watched', 'window')
    off = np.abs(np.array(tab.page.evaluate(WATCHED)).reshape(T, *CROP, 3) - by_library(video).astype(int))
    assert off.mean() < .05 and off.max() <= 4, (off.mean(), off.max())


@in_browser
def test_a_browser_that_hands_out_no_frames(tab, tmp_path):
    "Without WebCodecs the page reads what the browser draws: close to the library, not equal"
    tab.page.evaluate('delete globalThis.VideoFrame')
    video = patterns(tmp_path/'a.mp4', (192, 256))
    tab.page.set_input_files('#try-file', str(video))
    tab.shows('#try-watched', 'window')
    off = np.abs(np.array(tab.page.evaluate(WATCHED)).reshape(T, *CROP, 3) - by_library(video).astype(int))
    assert off.mean() < 1, (off.mean(), off.max())


@in_browser
def test_a_codec_that_the_browser_lacks(tab, tmp_path):
    "MPEG-4 part 2 alone, in AVI, or with sound that the browser does play: a sentence, and the next video is watched"
    cases = (('silent.mp4', 'the browser lacks its codec', False), ('old.avi', 'the browser lacks its codec', False), ('sound.mp4', 'sees no picture', True))
    for name, said, sound in cases:
        tab.page.set_input_files('#try-file', str(patterns(tmp_path/name, (48, 64), 'mpeg4', sound=sound)))
        tab.shows('#try-watched', f'{name}: this browser')
        assert said in tab.said('#try-watched') and 'H.264 works in most' in tab.said('#try-watched')
        assert tab.page.locator('#try-over-time figure').count() == 0
    tab.page.set_input_files('#try-file', str(patterns(tmp_path/'good.mp4', (48, 64))))
    tab.shows('#try-watched', '1 window over 3.0 seconds')
    assert not [w for w in tab.wrong if 'Uncaught' in w]


@in_browser
def test_a_video_without_motion_and_a_long_one(tab, tmp_path):
    import av
    def film(name, seconds, rate):
        with av.open(str(tmp_path/name), 'w') as f:
            s = f.add_stream('libx264', rate=rate, options=dict(preset='ultrafast')); s.width, s.height, s.pix_fmt = 64, 48, 'yuv420p'
            for _ in range(seconds*rate): f.mux(s.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, 'uint8'), format='rgb24')))
            f.mux(s.encode())
        return str(tmp_path/name)
    tab.load()
    tab.page.set_input_files('#try-file', film('still.mp4', 3, 5))
    tab.shows('#try-watched', 'Nothing moves in this video')
    tab.page.set_input_files('#try-file', film('long.mp4', 3600, 1))
    tab.shows('#try-watched', 'Its first 120 seconds were watched')
    assert '120.0 seconds' in tab.said('#try-watched')


@in_browser
def test_what_a_browser_lacks(browser, page_file):
    "No WebAssembly, no camera: a sentence, and the rest goes on"
    t = Tab(browser, page_file.as_uri())
    t.page.evaluate('delete globalThis.WebAssembly')
    t.page.click('#try-load')
    t.page.wait_for_selector('#try-status.try-error')
    assert 'this browser has no WebAssembly' in t.said('#try-status') and t.page.is_enabled('#try-load')
    t.page.click('#try-camera')
    t.page.wait_for_selector('#try-watched.try-error')
    assert 'The camera cannot be used' in t.said('#try-watched') and 'A file can be dropped instead' in t.said('#try-watched')
    t.page.click('#try-start')
    t.page.wait_for_selector('#try-answers button')
    t.context.close()


@in_browser
def test_a_camera(browser, page_file):
    "One that films a test picture: where it is allowed it is watched, where not a sentence says so"
    b = browser.browser_type.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--use-fake-device-for-media-stream'])
    with served(page_file) as address:
        for permissions, said in (([], 'The camera cannot be used: it was not allowed'), (['camera'], '1 window over 3.0 seconds')):
            t = Tab(b, f'{address}/{page_file.name}', permissions=permissions)
            t.page.click('#try-camera')
            t.shows('#try-watched', said)
            t.context.close()
    b.close()


@in_browser
def test_the_same_answer_as_predict(browser, study, tmp_path):
    "Each model of the library, as it is exported: what the browser says of stored clips is what the library says"
    import torch
    from kinetics_dance.inference import Predictor
    from kinetics_dance.models.config import write_model
    from kinetics_dance.models.registry import MODELS, model_class
    arguments = dict(per_frame={}, cnn_lstm=dict(hidden=16), video_transformer=dict(frames=T, width=32, depth=1))
    folder = tmp_path/'study'
    shutil.copytree(study, folder, ignore=shutil.ignore_patterns('models', 'videos'))
    classes = json.loads((study/'models/per_frame/seed0/config.json').read_text())['classes']
    torch.manual_seed(0)
    for m, more in arguments.items():
        a = dict(backbone='small', weights='none') | more
        write_model_at = folder/'models'/m/'seed0'
        write_model_at.mkdir(parents=True)
        write_model(write_model_at, model_class(MODELS[m].spec)(2, **a), config(classes, model=MODELS[m].spec, arguments=a, name=m))
    x = np.stack([np.load(p)[::2, 2:46, 2:62] for p in sorted((folder/'frames').glob('*.npy'))[:6]])
    t = Tab(browser, write_page(tmp_path/'site', folder).as_uri()).load()
    for m in arguments:
        found = t.page.evaluate("([m, x]) => tryIt.ask(m, Uint8Array.from(atob(x), c => c.charCodeAt(0))).then(l => l.map(a => [...a]))", [m, try_it.base64.b64encode(x.tobytes()).decode()])
        p = Predictor.load(folder/'models'/m/'seed0')
        try: want = p.probabilities(x)
        finally: p.close()
        assert np.abs(np.array(found) - want).max() < 1e-3 and want.std(0).max() > 1e-6, m
    t.context.close()


def test_only_what_npm_signs_for(tmp_path, monkeypatch, capsys, study):
    "A file of other bytes is not used, and where the runtime cannot be had a line says so and there is no page"
    monkeypatch.setenv('KINETICS_DANCE_CACHE', str(tmp_path))
    monkeypatch.delenv('KINETICS_DANCE_ONNXRUNTIME_WEB', raising=False)
    monkeypatch.setattr(try_it, 'download', lambda: b'something else')
    assert try_it.make(tmp_path, 'tiny', study, tmp_path/'src') is None
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'no page "Try it yourself"' in err and 'not the file that npm signs for' in err
    assert not list(tmp_path.rglob('*.tgz')) and not (tmp_path/'src').exists()
    assert try_it.ready(study) == 'no runtime' and try_it.ready(tmp_path) == 'no models'


def test_a_study_whose_models_cannot_run_says_why(tmp_path, monkeypatch, study):
    monkeypatch.setattr(try_it, 'runtime', lambda: ('', b''))
    def fails(*a): raise ValueError('no such operator')
    monkeypatch.setattr(try_it, 'exported', fails)
    assert try_it.make(tmp_path, 'tiny', study, tmp_path) == try_it.PAGE
    text = (tmp_path/f'{try_it.PAGE}.md').read_text()
    assert 'do not run in a browser' in text and 'CNN-LSTM cannot be exported' in text and 'no such operator' in text
    assert not (tmp_path/try_it.FOLDER).exists()
    monkeypatch.setattr(try_it, 'exported', lambda m, *a: np.random.default_rng(0).bytes(20_000_000 if m == 'cnn_lstm' else 1000))
    files, about = try_it.material(study)
    assert [m['name'] for m in about['models']] == ['per_frame', 'video_transformer'] and 'CNN-LSTM weighs 2' in about['left_out'][0]
    assert sum(map(len, files.values())) < try_it.LARGEST


def test_a_label_is_text():
    "Whatever a class or a study is called, the page gets its name as it is, and no tag of it"
    label = 'a "b" <script>alert(1)</script> \\ ` ::: ](x) {{size}}'
    about = dict(classes=[label], frames=4, crop=[1, 1], seconds=3., sizes={}, left_out=['<b>'])
    text = try_it.page('st<b>udy', about, False)
    assert '<b>' not in text and '<script>alert' not in text
    data = re.search(r'data-study="([^"]*)"', text)[1]
    assert json.loads(html.unescape(data)) == about


def test_the_page_to_try_stands_first(toy, tmp_path, monkeypatch):
    "A study whose models run in a browser: first link of the home page, a policy of its own, and little to load before a click"
    from report.site import build
    from test_site import Page
    about = dict(classes=['a', 'b'], frames=4, crop=[44, 60], seconds=3., sizes={'wasm.js': 5_000_000}, left_out=[])
    toy.run()
    weights = toy.folder/'models/per_frame/seed0/model.safetensors'
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b'w')
    monkeypatch.setattr(try_it, 'archive', lambda: b'')
    monkeypatch.setattr(try_it, 'material', lambda folder: ({'wasm.js': 'x'*5_000_000}, about))
    out = tmp_path/'site'
    build(toy.root, 'toy', out=out)
    home, page = Page(out/'index.html'), Page(out/'try-it.html')
    body = home.html[home.html.index('<h1>'):]
    assert re.search(r'<a [^>]*href="([^"#]+)"', body)[1] == 'try-it.html'
    assert "'wasm-unsafe-eval'" in page.html and "connect-src 'none'" in page.html and "'wasm-unsafe-eval'" not in home.html
    assert (out/'_static/try/wasm.js').stat().st_size == 5_000_000
    loads = {a['src'] for a in page.find('script', src='_static')} | {a['href'] for a in page.find('link', href='_static')}
    assert '_static/try/try_it.js' in loads and '_static/try/try_it.js' not in home.html
    assert len(page.html.encode()) + sum((out/u.split('?')[0]).stat().st_size for u in loads) < 300_000
