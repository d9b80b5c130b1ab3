"Backbones by name, files of weights, the three models and torchvision's: what holds for all of them."
import hashlib, io, os, pickle, sys, threading, warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest, torch, yaml
from torch import nn
from torch.overrides import TorchFunctionMode
from safetensors.torch import save_file
from torchvision import models
from torchvision.models import get_model, get_model_weights, list_models
from conftest import ROOT
from report.common import study_files
from kinetics_dance.models.backbones import (
    FrameFeatures, _headless, head_parameters, make_backbone, map_shape)
from kinetics_dance.cnn_lstm import CNNLSTM
from kinetics_dance.core.base import StudyError
from kinetics_dance.per_frame import PerFrame
from kinetics_dance.models.torchvision_video import ARCHITECTURES, TorchvisionVideo
from kinetics_dance.video_transformer import VideoTransformer
from kinetics_dance.models.weights import read_weights

DATA = ROOT.parent/'shared/data'
WEIGHTS = DATA/'weights/mobilenet_v2_torchvision_keys.npz'
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason='../shared/data/weights is not there')
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads(); torch.set_num_threads(1); torch.manual_seed(0)
    yield
    torch.set_num_threads(n)


class NoNumbers(TorchFunctionMode):
    "Weights are made on the meta device: shapes and no numbers (as `torch.device('meta')`, but what a network computes to be built is computed)"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get('device') is None: kwargs['device'] = 'meta'
        return func(*args, **kwargs)


# ── backbones ──────────────────────────────────────────────────────────────

def test_every_classifier_of_torchvision_makes_a_map():
    names = list_models(module=models)
    assert len(names) >= 80
    for name in names:
        with NoNumbers(): body = make_backbone(name)            # finds the channels of the map of a frame of 224×224
        assert body.channels >= 40 and body.pretraining == 'none', name


@pytest.mark.parametrize('name', ['alexnet', 'inception_v3', 'maxvit_t', 'vit_b_32'])
def test_frames_that_a_network_cannot_take(name):
    with NoNumbers(): look = FrameFeatures(name)
    with pytest.raises(StudyError, match='48×64') as e: look.check(48, 64)
    assert '\n' not in str(e.value) and 'crop_height' in str(e.value)
    look.check(224, 224)


@pytest.mark.parametrize('name, size', [('alexnet', 80), ('convnext_tiny', 64), ('densenet121', 64), ('efficientnet_b0', 64), ('googlenet', 64), ('inception_v3', 96),
                                        ('maxvit_t', 224), ('mnasnet0_5', 64), ('mobilenet_v3_small', 64), ('regnet_x_400mf', 64), ('resnet18', 64), ('shufflenet_v2_x0_5', 64),
                                        ('squeezenet1_1', 64), ('swin_t', 64), ('swin_v2_t', 64), ('efficientnet_v2_s', 64)])
def test_the_body_is_what_the_classifier_pools(name, size):
    full = get_model(name, weights=None, **({'init_weights': False} if name in ('googlenet', 'inception_v3') else {})).eval()
    if hasattr(full, 'transform_input'): full.transform_input = True
    seen = {}
    first = next(m for k, m in full.named_children() if k in ('avgpool', 'classifier', 'fc', 'head'))
    first.register_forward_pre_hook(lambda m, i: seen.update(x=i[0]))
    x = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        full(x)
        f = _headless(name, full)(x)
    want = seen['x']
    got = f if want.ndim == 4 else f.mean((2, 3))
    assert got.shape == want.shape and torch.allclose(got, want, atol=1e-4, rtol=1e-3)


def test_vit_takes_any_whole_patches_and_positions_of_another_square(tmp_path):
    with NoNumbers(): body = make_backbone('vit_b_32').eval()
    assert map_shape(body, 96, 160) == (768, 3, 5)
    small = models.VisionTransformer(image_size=64, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)
    large = models.VisionTransformer(image_size=128, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)
    from kinetics_dance.models.backbones import _HEADS, PatchMap, _other_side
    from kinetics_dance.models.weights import fill
    one, other = PatchMap('vit', small), PatchMap('vit', large)
    fill(one, _other_side(one, large.state_dict()), 'x', 'vit', ignore=_HEADS)
    assert torch.equal(one.class_token, large.class_token) and one.encoder.pos_embedding.shape == (1, 17, 16)
    # the small square is the large one stretched
    other.encoder.pos_embedding.data.copy_(torch.linspace(0, 1, 65)[None, :, None].expand(1, 65, 16))
    fill(one, _other_side(one, other.state_dict()), 'x', 'vit', ignore=_HEADS)
    got, want = one.encoder.pos_embedding[0, :, 0], other.positions(4, 4)[0, :, 0]
    assert got[0] == want[0] == 0 and (got-want).abs().max() < .06 and (got[1:].diff() > 0).all()


@pytest.mark.parametrize('name, words', [('resnet81', "did you mean 'resnet18'"), ('mobilnet_v2', 'mobilenet_v2'), ('r3d_18', 'extra_models'), ('fcn_resnet50', 'neither small nor'), ('', 'neither')])
def test_unknown_backbone(name, words):
    with pytest.raises(StudyError, match=words): make_backbone(name)


# ── files of weights ───────────────────────────────────────────────────────

def randomise(net):
    "Statistics as after training, else the batch norms look folded"
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(); m.running_var.uniform_(.5, 2)
    return net


@pytest.fixture(scope='module')
def full():
    torch.manual_seed(1)
    return randomise(get_model('shufflenet_v2_x0_5', weights=None))


NAME = 'shufflenet_v2_x0_5'


@pytest.mark.parametrize('form', ['npz', 'safetensors', 'pth', 'state_dict', 'model', 'module', 'body', 'old'])
def test_forms_of_files(tmp_path, full, form):
    state = full.state_dict()
    path = tmp_path/('w.' + (form if form in ('npz', 'safetensors') else 'pth'))
    if form == 'npz': np.savez(path, **{k: v.numpy() for k, v in state.items()})
    elif form == 'safetensors': save_file(state, path)
    else:
        state = {'module': {f'module.{k}': v for k, v in state.items()}, 'body': {k: v for k, v in state.items() if not k.startswith('fc.')},
                 'old': {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}}.get(form, state)
        torch.save({form: state, 'epoch': 3} if form in ('state_dict', 'model') else state, path)
    look = FrameFeatures(NAME, str(path))
    assert look.pretraining == 'file' and not look.body.folded
    for k, v in look.body.state_dict().items():
        if not k.endswith('num_batches_tracked'): assert torch.equal(v, full.state_dict()[k]), k


def test_weights_of_a_model_of_ours_fit_again(tmp_path, full):
    model = PerFrame(3, NAME)
    randomise(model)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path/'model.safetensors')
    body = make_backbone(NAME, str(tmp_path/'model.safetensors'))
    assert all(torch.equal(v, model.features.body.state_dict()[k]) for k, v in body.state_dict().items())


def refused(path, name=NAME):
    with pytest.raises(StudyError) as e: make_backbone(name, str(path))
    line = str(e.value)
    assert '\n' not in line and line.startswith('weights: ') and len(line) < 500 + len(str(path)), line
    return line


def test_weights_of_another_model(tmp_path, full):
    torch.save(full.state_dict(), tmp_path/'w.pth')
    line = refused(tmp_path/'w.pth', 'resnet18')
    assert 'w.pth is of another network than resnet18' in line and 'missing (' in line and 'unexpected (' in line and ', …)' in line and 'fc.' not in line
    line = refused(tmp_path/'w.pth', 'shufflenet_v2_x1_0')      # the same names, wider
    assert 'missing' not in line and 'of another shape' in line and '(24, 3, 3, 3)' not in line and 'instead of' in line
    state = full.state_dict() | {'conv1.0.weight': torch.full((24, 3, 3, 3), float('nan'))}
    torch.save(state, tmp_path/'nan.pth')
    assert 'not numbers, first in conv1.0.weight' in refused(tmp_path/'nan.pth')


class Trap:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


def test_a_program_in_a_file_is_not_run(tmp_path):
    ran = tmp_path/'ran'
    torch.save({'conv1.weight': Trap(ran)}, tmp_path/'zip.pth')
    (tmp_path/'pickle.pth').write_bytes(pickle.dumps({'conv1.weight': Trap(ran)}))
    torch.save({'state_dict': Trap(ran)}, tmp_path/'wrapped.pt', _use_new_zipfile_serialization=False)
    np.savez(tmp_path/'object.npz', w=np.array([Trap(ran)], dtype=object))
    for f in ('zip.pth', 'pickle.pth', 'wrapped.pt'): assert 'more than numbers' in refused(tmp_path/f)
    assert 'cannot be read' in refused(tmp_path/'object.npz')
    assert not ran.exists()
    with pytest.raises(FileExistsError): pickle.loads(pickle.dumps([os.mkdir(ran), Trap(ran)][1]))       # the trap works


def test_damaged_files(tmp_path, full):
    state = full.state_dict()
    torch.save(state, tmp_path/'a.pth'); save_file(state, tmp_path/'a.safetensors'); np.savez(tmp_path/'a.npz', **{k: v.numpy() for k, v in state.items()})
    for f in ('a.pth', 'a.safetensors', 'a.npz'):
        whole = (tmp_path/f).read_bytes()
        for n in (0, 7, 5000, len(whole)//2, len(whole)-40):
            (tmp_path/f).write_bytes(whole[:n])
            assert 'cannot be read' in refused(tmp_path/f), (f, n)
    torch.save([1, 2], tmp_path/'list.pth'); torch.save({'epoch': 3}, tmp_path/'other.pth'); np.savez(tmp_path/'text.npz', a=np.array(['x']))
    for f in ('list.pth', 'other.pth'): assert 'not a table of weights' in refused(tmp_path/f)
    assert 'cannot be read' in refused(tmp_path/'text.npz')
    assert 'there is no file' in refused(tmp_path/'gone.npz')
    (tmp_path/'dir.pth').mkdir(); refused(tmp_path/'dir.pth')
    assert "did you mean 'imagenet'" in refused('imagnet')


@pytest.fixture
def web(tmp_path, monkeypatch):
    "A server for weights, and a folder of torchvision's of its own"
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *a): pass
    (tmp_path/'www').mkdir()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path/'hub'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path/'www')))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    def publish(arch, state, good=True):
        b = io.BytesIO(); torch.save(state, b)
        digest = hashlib.sha256(b.getvalue()).hexdigest()[:8] if good else '0badc0de'
        (tmp_path/'www'/f'net-{digest}.pth').write_bytes(b.getvalue())
        monkeypatch.setattr(get_model_weights(arch).DEFAULT.value, 'url', f'http://127.0.0.1:{server.server_port}/net-{digest}.pth')
    yield publish
    server.shutdown(); server.server_close()


def test_imagenet_weights_are_fetched_and_checked(web, full, tmp_path):
    web(NAME, full.state_dict(), good=False)
    assert 'cannot be fetched' in refused('imagenet') and 'invalid hash' in refused('imagenet')
    web(NAME, full.state_dict())
    look = FrameFeatures(NAME, 'imagenet')
    assert look.pretraining == 'imagenet' and torch.equal(look.body.conv1[0].weight, full.conv1[0].weight)
    web(NAME, {'w': Trap(tmp_path/'ran')})
    assert 'cannot be fetched' in refused('imagenet') and not (tmp_path/'ran').exists()
    assert 'no ImageNet weights for the small' in refused('imagenet', 'small')


def test_imagenet_weights_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    monkeypatch.setattr(get_model_weights(NAME).DEFAULT.value, 'url', 'http://127.0.0.1:9/net-01234567.pth')
    assert str(tmp_path/'checkpoints') in refused('imagenet')


def test_densenets_were_named_otherwise(tmp_path):
    import re
    names = list(_headless('densenet121', get_model('densenet121', weights=None)).state_dict())
    body = make_backbone('densenet121')
    old = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', k): torch.ones_like(v) for k, v in body.state_dict().items()}
    assert set(old) != set(names)
    from kinetics_dance.models.weights import fill
    fill(body, old, 'x', 'densenet121')
    assert all((v == 1).all() for v in body.state_dict().values())


# ── the real weights ───────────────────────────────────────────────────────

@needs_weights
def test_real_weights_know_the_photographs():
    from PIL import Image
    from torchvision.transforms import functional as TF
    from kinetics_dance.loading.reader import normalise
    body, state = make_backbone('mobilenet_v2', str(WEIGHTS)).eval(), read_weights(WEIGHTS)
    labels = (WEIGHTS.parent/'imagenet_labels.txt').read_text().splitlines()
    assert body.folded and body.pretraining == 'file'
    for photo, word in (('cat.bmp', 'cat'), ('dragonfly.bmp', 'dragonfly'), ('hot_dog.jpg', 'hotdog')):
        im = TF.center_crop(TF.resize(Image.open(WEIGHTS.parent/photo).convert('RGB'), 256), 224)
        x = normalise(torch.from_numpy(np.array(im))[None, None])[0]                      # (1,3,224,224), as clips are
        with torch.inference_mode(): p = (body(x).mean((2, 3)) @ state['classifier.1.weight'].T + state['classifier.1.bias']).softmax(-1)[0]
        assert word in labels[int(p.argmax())+1] and p.max() > .6, (photo, labels[int(p.argmax())+1], float(p.max()))


@needs_weights
@pytest.mark.skipif(not (DATA/'motion').exists(), reason='../shared/data/motion is not there')
def test_pretrained_and_frozen_beats_random_and_frozen_on_motion(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'bench'))
    import transfer
    monkeypatch.setattr(transfer, 'T', 4)
    res, n = transfer.compare(['jumping_jacks', 'squat', 'pullup'], 12, 10, epochs=10, seeds=(0,), calibrated=False, heads=('LSTM',))
    assert n == 30 and res['ImageNet']['LSTM'][0] > res['random']['LSTM'][0] + .1, res


@needs_weights
def test_folded_norms_are_not_trained():
    x = torch.randn(1, 2, 3, 64, 64)
    look = FrameFeatures('mobilenet_v2', str(WEIGHTS))
    look.eval()(x)                                                  # as `train: head` uses it
    for call in (lambda: look.check(train=True), lambda: look.train()(x)):
        with pytest.raises(StudyError, match='batch_norm: frozen, or train: head'): call()
    FrameFeatures('mobilenet_v2', str(WEIGHTS), batch_norm='frozen').train()(x)


@pytest.mark.parametrize('name', ['small', NAME])
def test_frozen_batch_norm(name):
    look = FrameFeatures(name, batch_norm='frozen')
    before = {k: v.clone() for k, v in look.state_dict().items()}
    model = nn.Sequential(look)
    for m in (model, look, look.body): m.train()                    # whoever says so
    assert look.body.training and not any(m.training for m in look.modules() if isinstance(m, nn.BatchNorm2d))
    opt = torch.optim.SGD(look.parameters(), lr=.1)
    (model(torch.randn(2, 3, 3, 64, 64))*torch.randn(128 if name == 'small' else 1024)).sum().backward(); opt.step()
    after, plain = look.state_dict(), FrameFeatures(name).state_dict()
    assert list(after) == list(plain)                               # a card made with one fits the other
    norms = [k for k, m in look.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for k in norms:
        for s in ('running_mean', 'running_var', 'num_batches_tracked'): assert torch.equal(before[f'{k}.{s}'], after[f'{k}.{s}'])
    assert any(not torch.equal(before[f'{k}.weight'], after[f'{k}.weight']) for k in norms)
    with pytest.raises(StudyError, match='neither train nor frozen'): FrameFeatures(batch_norm='freeze')


# ── models ─────────────────────────────────────────────────────────────────

OURS = {'per_frame': partial(PerFrame, 5),
        **{f'lstm-{s}{"-both" if b else ""}-{l}': partial(CNNLSTM, 5, state=s, bidirectional=b, layers=l) for s in ('mean', 'last') for b in (False, True) for l in (1, 2)},
        **{f'transformer-{t}-{p}': partial(VideoTransformer, 5, tokens=t, pool=p) for t in ('features', 'tubelet') for p in ('mean', 'token')}}
each = pytest.mark.parametrize('name', OURS)


def clips(n, t=8): return torch.randn(n, t, 3, 44, 60)


@each
def test_a_clip_does_not_depend_on_its_neighbours(name):
    model, x = randomise(OURS[name]()).eval(), clips(4)
    with torch.inference_mode():
        alone = torch.cat([model(c[None]) for c in x])
        assert torch.allclose(model(x), alone, atol=1e-5)
        assert torch.allclose(model(x[[2, 0, 3, 1]]), alone[[2, 0, 3, 1]], atol=1e-5)
        y = x.clone(); y[1:] = clips(3)*5
        assert torch.allclose(model(y)[0], alone[0], atol=1e-5)
    # nor do its gradients: the sum over one clip's scores says nothing of another
    x.requires_grad_(); model(x)[0].sum().backward()
    assert x.grad[0].abs().sum() > 0 and not x.grad[1:].any()


@each
def test_order(name):
    model, x = randomise(OURS[name]()).eval(), clips(2)
    with torch.inference_mode():
        a, b = model(x), model(x.flip(1))
    if name == 'per_frame':
        assert torch.allclose(a.flip(1), b, atol=1e-5) and torch.allclose(a.softmax(-1).mean(1), b.softmax(-1).mean(1), atol=1e-6)
    else: assert (a-b).abs().max() > 1e-4


@each
def test_any_number_of_frames(name):
    model = OURS[name]().eval()
    with torch.inference_mode():
        for t in (1, 2, 5, 8, 16, 32):
            x = clips(1, t)
            s = model(x)
            assert s.shape == ((1, t, 5) if name == 'per_frame' else (1, 5)) and s.isfinite().all()
            if model.features is not None:
                f = model.features(x)
                assert f.shape == (1, t, 4, 128) and torch.equal(model.score(f), s)


def test_every_model_says_what_it_is_made_of():
    import inspect
    for cls in (PerFrame, CNNLSTM, VideoTransformer, TorchvisionVideo):
        takes = inspect.signature(cls).parameters
        assert set(cls.study_parameters) <= set(takes) and all(takes[a].default is not inspect.Parameter.empty for a in cls.study_parameters)
    assert PerFrame(2).pretraining == 'none' and VideoTransformer(2, tokens='tubelet').features is None


SHAPES = [(8, 3, 44, 60), (2, 8, 44, 60, 3), (2, 8, 1, 44, 60), (0, 8, 3, 44, 60), (2, 0, 3, 44, 60), (44,)]


@pytest.mark.parametrize('name', ['per_frame', 'lstm-mean-1', 'transformer-features-mean', 'transformer-tubelet-mean', 'mc3_18'])
def test_a_batch_of_wrong_shape(name):
    model = OURS[name]() if name in OURS else TorchvisionVideo(5, name)
    for shape in SHAPES:
        with pytest.raises(StudyError) as e: model(torch.zeros(shape))
        assert 'expected (B,T,3,H,W), got' in str(e.value) and str(shape)[1:-1] in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(StudyError, match='expected floats'): model(torch.zeros(2, 8, 3, 44, 60, dtype=torch.uint8))
    with pytest.raises(StudyError, match='expected'): model([1, 2])


def test_bad_options():
    for make, words in ((partial(CNNLSTM, 5, state='first'), 'lstm_state'), (partial(CNNLSTM, 5, layers=3), 'lstm_layers'), (partial(VideoTransformer, 5, tokens='x'), 'transformer_tokens'),
                        (partial(VideoTransformer, 5, pool='max'), 'transformer_pool'), (partial(VideoTransformer, 5, width=130), 'transformer_width'), (partial(PerFrame, 5, grid=0), 'grid')):
        with pytest.raises(StudyError, match=words): make()
    with NoNumbers(): vit = FrameFeatures('vit_b_16')
    with pytest.raises(StudyError, match='multiples of 16'): vit.check(44, 60)


@pytest.mark.parametrize('path', study_files(ROOT), ids=lambda p: p.stem)
def test_heads_of_a_study_are_of_one_size(path):
    settings = yaml.safe_load(path.read_text())
    n = 12 if settings.get('source', 'demo') == 'demo' else 15
    sizes = {}
    with NoNumbers():
        for cls in (PerFrame, CNNLSTM, VideoTransformer):
            sizes[cls.__name__] = head_parameters(cls(n, **{a: settings[s] for a, s in cls.study_parameters.items() if s in settings and a != 'weights'}))
    assert max(sizes.values()) <= 2*min(sizes.values()), sizes


def test_positions_in_time_are_exact_at_their_own_length():
    model = VideoTransformer(5, frames=8)
    from kinetics_dance.video_transformer import stretch
    assert stretch(model.embed.when, 8) is model.embed.when
    assert torch.allclose(stretch(torch.arange(4.)[:, None, None], 8).flatten()[1:-1], torch.linspace(.25, 2.75, 6))


# ── torchvision's video networks ───────────────────────────────────────────

@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_video_networks_take_small_clips(arch):
    with NoNumbers(): model = TorchvisionVideo(5, arch).eval()
    meta = {k: v.to('meta') for k, v in (*model.named_parameters(), *model.named_buffers())}
    shapes = [(8, 44, 60), (1, 64, 64), (3, 112, 112), (16, 224, 224)]
    for shape in shapes[:4 if arch in ('r3d_18', 's3d') else 2]:
        x = torch.empty(2, shape[0], 3, *shape[1:], device='meta')
        with torch.no_grad(): assert torch.func.functional_call(model, meta, x).shape == (2, 5), shape


def test_all_video_classifiers_are_known(): assert set(ARCHITECTURES) == set(list_models(module=models.video))


def test_normalisation_and_last_layer_are_those_of_the_weights():
    for arch, (last, (mean, std), _, fixed) in ARCHITECTURES.items():
        for w in get_model_weights(arch):
            t = w.transforms()
            assert tuple(t.mean) == mean and tuple(t.std) == std, w
            if fixed: assert fixed[1:] == tuple(t.crop_size)
        with NoNumbers(): assert isinstance(get_model(arch, weights=None, num_classes=7).get_submodule(last), (nn.Linear, nn.Conv3d))


def test_kinetics_weights(web, tmp_path):
    with pytest.raises(StudyError, match='13 of the 15 classes.*475 of the 645.*allow_kinetics_pretraining: true'): TorchvisionVideo(5, 's3d', 'kinetics')
    source = get_model('s3d', weights=None)
    web('s3d', source.state_dict())
    torch.manual_seed(3)
    model = TorchvisionVideo(5, 's3d', 'kinetics', allow_kinetics_pretraining=True)
    assert model.pretraining == 'kinetics-400' and model.net.classifier[1].out_channels == 5 and TorchvisionVideo(5, 's3d').pretraining == 'none'
    assert torch.equal(model.net.features[0][0][0].weight, source.features[0][0][0].weight)
    # a card is read without fetching anything, and the network computes the same
    again = TorchvisionVideo(5, 's3d'); again.load_state_dict(model.state_dict())
    x = clips(1)
    with torch.inference_mode(): assert torch.equal(model.eval()(x), again.eval()(x))
    web('s3d', {k: v for k, v in source.state_dict().items() if 'features.3' not in k})
    with pytest.raises(StudyError, match='of another network than s3d: .* missing'): TorchvisionVideo(5, 's3d', 'kinetics', True)
    web('s3d', source.state_dict(), good=False)
    with pytest.raises(StudyError, match='cannot be fetched .*invalid hash'): TorchvisionVideo(5, 's3d', 'kinetics', True)


def test_s3d_pools_as_before():
    full, model = get_model('s3d', weights=None, num_classes=5).eval(), TorchvisionVideo(5, 's3d').eval()
    f = torch.randn(1, 1024, 2, 7, 7)
    assert torch.allclose(full.avgpool(f), model.net.avgpool(f), atol=1e-6)


@pytest.mark.parametrize('name, words', [('r3d18', "did you mean 'r3d_18'"), ('resnet18', 'none of torchvision')])
def test_unknown_video_network(name, words):
    with pytest.raises(StudyError, match=words): TorchvisionVideo(5, name)


@pytest.mark.skipif(not (DATA/'kinetics').exists(), reason='../shared/data/kinetics is not there')
def test_the_leak_is_as_large_as_we_say():
    import pandas as pd
    ours, k400 = pd.read_csv(DATA/'kinetics/k700_2020_dancing_train.csv'), pd.read_csv(DATA/'kinetics/kinetics-400_val.csv')
    shared = set(ours.label) & set(k400.label)
    val = k400[k400.label.isin(shared)]
    assert len(shared) == 13 and len(val) == 645 and val.youtube_id.isin(set(ours.youtube_id)).sum() == 475


def test_features_of_another_grid_are_other_features():
    from types import SimpleNamespace
    from kinetics_dance.models.backbones import FrameFeatures
    from kinetics_dance.training.frozen_features import features_key
    nets = [FrameFeatures('small', grid=g) for g in (1, 2)]
    nets[1].load_state_dict(nets[0].state_dict())
    assert len({features_key(n, SimpleNamespace(version='v'), (44, 60)) for n in nets}) == 2
