"""Encoders of timm, transformers and ONNX behind one protocol: tiny networks of every family, built from their configs with random weights, saved and loaded as
real ones are, say what the library's own forward pass says with its own preprocessing; and each mistake is one line."""
import json
import numpy as np, pytest, torch
from kinetics_dance.core.base import StudyError
from kinetics_dance.loading.reader import normalise
from kinetics_dance.models.encoders import KNOWN_ENCODERS, encoder_history, encoder_digest, open_encoder, pool_tokens, read_spec
from conftest import ROOT

SIDE = 32
SIZES = dict(image_size=SIDE, patch_size=16, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
VJEPA2 = dict(patch_size=16, crop_size=SIDE, frames_per_clip=4, tubelet_size=2, hidden_size=24, num_attention_heads=2, num_hidden_layers=2, mlp_ratio=2.,
              pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, pred_num_mask_tokens=2)
SQUARE = dict(height=SIDE, width=SIDE)
# family: (class of the config, of the network, of the processor, arguments of the config, those of the processor, frames, (time steps, tokens of each))
VIDEO = {
    'videomae': ('VideoMAEConfig', 'VideoMAEModel', 'VideoMAEImageProcessor', SIZES | dict(num_frames=4), dict(size=dict(shortest_edge=SIDE), crop_size=SQUARE), 4, (2, 4)),
    'vjepa2': ('VJEPA2Config', 'VJEPA2Model', 'VJEPA2VideoProcessor', VJEPA2, dict(size=dict(shortest_edge=SIDE), crop_size=SQUARE), 6, (3, 4)),
    'timesformer': ('TimesformerConfig', 'TimesformerModel', 'VideoMAEImageProcessor', SIZES | dict(num_frames=4),
                    dict(size=dict(shortest_edge=SIDE), crop_size=SQUARE, image_mean=[.45]*3, image_std=[.225]*3), 4, (4, 4)),
    'vivit': ('VivitConfig', 'VivitModel', 'VivitImageProcessor', {k: v for k, v in SIZES.items() if k != 'patch_size'} | dict(num_frames=4, tubelet_size=[2, 16, 16]),
              dict(size=dict(shortest_edge=SIDE), crop_size=SQUARE), 4, (2, 4))}
IMAGE = {
    'vit': ('ViTConfig', 'ViTModel', 'ViTImageProcessor', SIZES, dict(size=SQUARE), 5),
    'dinov2': ('Dinov2Config', 'Dinov2Model', 'BitImageProcessor', SIZES, dict(size=dict(shortest_edge=SIDE), crop_size=SQUARE), 5),
    'dinov3': ('DINOv3ViTConfig', 'DINOv3ViTModel', 'ViTImageProcessor', SIZES | dict(num_register_tokens=3), dict(size=SQUARE), 5),
    'clip': ('CLIPVisionConfig', 'CLIPVisionModel', 'CLIPImageProcessor', SIZES, dict(size=dict(shortest_edge=SIDE), crop_size=SQUARE), 5),
    'siglip': ('SiglipVisionConfig', 'SiglipVisionModel', 'SiglipImageProcessor', SIZES, dict(size=SQUARE), 4),
    'convnext': ('ConvNextConfig', 'ConvNextModel', 'ConvNextImageProcessor', dict(hidden_sizes=[8, 8, 16, 24], depths=[1]*4, image_size=64),
                 dict(size=dict(shortest_edge=384)), 144)}


def need(*names):
    for n in names: pytest.importorskip(n, reason=f"{n} is not installed: pip install 'kinetics_dance[encoders]'")


def made(name, **kw):
    import transformers
    return getattr(transformers, name)(**kw)


def saved(folder, config, network, processor, sizes, how):
    "A network with random weights, saved as real ones are, and its processor"
    torch.manual_seed(0)
    import transformers
    net = getattr(transformers, network)(made(config, **sizes)).eval()
    for p in net.parameters(): p.data += .02*torch.randn_like(p)        # nothing stays at its zeros
    net.save_pretrained(folder)
    p = made(processor, **how)
    p.save_pretrained(folder)
    return net, p


def film(t, side=SIDE, seed=0):
    "Clips of coarse patterns that move, as bytes"
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, t, 4, 4, generator=g)
    x = torch.nn.functional.interpolate(x.flatten(0, 1), (side, side), mode='bilinear').unflatten(0, (2, 3))
    return (255*x).round().byte().permute(0, 2, 3, 4, 1).contiguous()       # (B,T,H,W,3)


def processed(processor, frames):
    "Frames `(T,H,W,3)` through a library's own processor"
    out = processor([f.numpy() for f in frames], return_tensors='pt') if 'Video' not in type(processor).__name__ or 'MAE' in type(processor).__name__ \
        else processor(frames.permute(0, 3, 1, 2), return_tensors='pt')
    return next(iter(out.values()))


@pytest.mark.parametrize('family', VIDEO)
def test_a_video_network_says_what_it_says_in_its_library(family, tmp_path):
    need('transformers')
    *what, t, (steps, places) = VIDEO[family]
    net, processor = saved(tmp_path, *what)
    x = film(t)
    with torch.no_grad():
        pixels = torch.cat([processed(processor, clip).reshape(1, t, 3, SIDE, SIDE) for clip in x])
        own = net.get_vision_features(pixels) if family == 'vjepa2' else net(pixel_values=pixels).last_hidden_state
        ours = open_encoder(f'transformers:{tmp_path}')
        tokens = ours(normalise(x))
    assert not ours.per_frame and tokens.values.shape == (2, steps*places, ours.width)
    assert tokens.steps.tolist() == [s for s in range(steps) for _ in range(places)]
    if family in ('timesformer', 'vivit'): own = own[:, 1:]
    if family == 'timesformer': own = own.unflatten(1, (places, steps)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(tokens.values, own, atol=2e-5, rtol=1e-4)
    assert own.std() > .1


@pytest.mark.parametrize('family', VIDEO)
def test_tokens_belong_to_their_time_steps(family, tmp_path):
    "What is shown at the end of a clip changes its last tokens more than its first: a network that does not mix says only theirs"
    need('transformers')
    import transformers
    *what, t, (steps, places) = VIDEO[family]
    saved(tmp_path, *what)
    ours = open_encoder(f'transformers:{tmp_path}')
    for name, p in ours.net.named_parameters():             # attention and MLPs add nothing: each token is its patch and its place
        if any(k in name for k in ('attention.output', 'attention.proj', 'output.dense', 'mlp.fc2', 'o_proj', 'fc2', 'temporal_dense', 'attn.proj')): p.data.zero_()
    x = film(t)
    y = x.clone()
    y[:, -1] = 255-y[:, -1]
    with torch.no_grad(): a, b = (ours(normalise(v)) for v in (x, y))
    changed = (a.values-b.values).abs().amax((0, 2)) > 1e-4
    assert set(a.steps[changed].tolist()) == {steps-1}


@pytest.mark.parametrize('family', IMAGE)
def test_a_picture_network_says_what_it_says_in_its_library(family, tmp_path):
    need('transformers')
    *what, places = IMAGE[family]
    net, processor = saved(tmp_path, *what)
    ours = open_encoder(f'transformers:{tmp_path}')
    side = ours.needs.size[0]
    x = film(3, side)
    with torch.no_grad():
        own = net(pixel_values=torch.cat([processed(processor, c) for c in x])).last_hidden_state
        tokens = ours(normalise(x))
    if own.ndim == 4: own = own.flatten(2).transpose(1, 2)
    elif family == 'dinov3': own = torch.cat([own[:, :1], own[:, 4:]], 1)
    torch.testing.assert_close(tokens.values.reshape(own.shape), own, atol=5e-5, rtol=1e-3)
    assert ours.per_frame and tokens.values.shape == (2, 3*places, ours.width) and own.std() > .05
    pooled = pool_tokens(tokens, 1)
    assert pooled.shape == (2, 3, 1 + (family not in ('siglip', 'convnext')), ours.width)


def test_frames_of_another_size_are_resized_as_the_processor_resizes_them(tmp_path):
    need('transformers')
    net, processor = saved(tmp_path, *IMAGE['clip'][:5])
    x = film(2, 48)
    with torch.no_grad():
        own = net(pixel_values=torch.cat([processed(processor, c) for c in x])).last_hidden_state
        tokens = open_encoder(f'transformers:{tmp_path}')(normalise(x)).values.reshape(own.shape)
    assert (own-tokens).abs().max() < .05*own.std()       # it rounds to bytes in between


@pytest.mark.parametrize('name, extra', [('vit_tiny_patch16_224', 1), ('convnext_atto', 0), ('vit_small_patch16_dinov3', 5), ('resnet18', 0), ('swin_s3_tiny_224', 0)])
def test_a_network_of_timm_says_what_it_says_in_timm(name, extra, tmp_path):
    need('timm')
    import timm
    from safetensors.torch import save_file
    size = 32 if extra else 64
    side = f'@{size}'
    if 'swin' in name: size, side = 224, ''
    net = timm.create_model(name, num_classes=0 if 'dinov3' in name else 7, **(dict(img_size=size) if extra else {})).eval()
    save_file(net.state_dict(), tmp_path/'net.safetensors')
    config = timm.data.resolve_model_data_config(net)
    if name == 'vit_small_patch16_dinov3': name += '.lvd1689m'
    ours = open_encoder(f'timm:{name}{side}={tmp_path/"net.safetensors"}')
    x = film(2, size)
    mean, std = (torch.tensor(config[k])[:, None, None] for k in ('mean', 'std'))
    with torch.no_grad():
        own = net.forward_features((x.flatten(0, 1).permute(0, 3, 1, 2)/255-mean)/std)
        tokens = ours(normalise(x)).values.flatten(0, 1)
    if own.ndim == 4: own = (own if own.shape[-1] == net.num_features else own.permute(0, 2, 3, 1)).flatten(1, 2)
    elif extra: own = torch.cat([own[:, :1], own[:, extra:]], 1)
    torch.testing.assert_close(tokens.reshape(own.shape), own, atol=5e-5, rtol=1e-3)
    assert ours.width == own.shape[-1]


def exported(path, net, x, **said):
    need('onnx', 'onnxscript', 'onnxruntime')
    import onnx
    torch.onnx.export(net, (x,), path, dynamo=True, verbose=False, external_data=False, dynamic_shapes=({0: torch.export.Dim('b')},))
    m = onnx.load(path)
    for k, v in said.items(): m.metadata_props.add(key=k, value=v)
    onnx.save(m, path)


class Columns(torch.nn.Module):
    "Clips (B,3,T,H,W) to the means of the columns of each frame"
    def forward(self, x): return x.mean(3).unflatten(-1, (4, -1)).mean(-1).permute(0, 2, 3, 1).flatten(1, 2)      # (B,T*4,3)


def test_an_onnx_file_is_an_encoder(tmp_path):
    path = tmp_path/'clips.onnx'
    exported(path, Columns(), torch.rand(2, 3, 5, 16, 16), mean='0.5,0.5,0.5', std='0.5,0.5,0.5', time_steps='5')
    ours = open_encoder(f'onnx:{path}')
    x = film(5, 16)
    tokens = ours(normalise(x))
    want = Columns()((x.permute(0, 4, 1, 2, 3)/255-.5)/.5)
    torch.testing.assert_close(tokens.values, want, atol=1e-5, rtol=1e-4)
    assert ours.needs.frames == 5 and ours.width == 3 and tokens.steps.tolist() == [s for s in range(5) for _ in range(4)]
    pictures = tmp_path/'pictures.onnx'
    exported(pictures, torch.nn.Conv2d(3, 6, 8, 8), torch.rand(2, 3, 16, 16))
    assert open_encoder(f'onnx:{pictures}')(normalise(x)).values.shape == (2, 5*4, 6)
    assert encoder_digest(ours) != encoder_digest(open_encoder(f'onnx:{pictures}'))


def refused(spec, *words):
    with pytest.raises(StudyError) as e: open_encoder(spec)
    said = str(e.value)
    assert '\n' not in said and all(w in said for w in words), said


def test_each_mistake_is_one_line(tmp_path):
    need('transformers', 'timm')
    good = tmp_path/'good'
    saved(good, *VIDEO['videomae'][:5])
    refused('timm:vit_smal_patch14_dinov2', 'did you mean', 'vit_small_patch14_dinov2')
    refused('timm:vit_small_patch14_dinov2.lvd142', 'lvd142m')
    refused('transformer:x', "did you mean 'transformers'")
    (tmp_path/'empty').mkdir()
    refused(f'transformers:{tmp_path/"empty"}', 'no config.json', 'save_pretrained')
    refused('transformers:no folder', 'neither a folder nor a name')
    pickle = tmp_path/'pickle'
    pickle.mkdir()
    for f in ('config.json', 'preprocessor_config.json'): (pickle/f).write_bytes((good/f).read_bytes())
    torch.save({}, pickle/'pytorch_model.bin')
    refused(f'transformers:{pickle}', 'pytorch_model.bin', 'a pickle can run code', 'safetensors')
    for name, change, words in (('text', dict(model_type='bert', architectures=['BertModel']), ('bert', 'no encoder')), ('grey', dict(num_channels=1), ('1 channels', 'frames have 3')),
                                ('other', dict(hidden_size=48), ('weights',))):
        folder = tmp_path/name
        folder.mkdir()
        for f in good.iterdir(): (folder/f.name).write_bytes(f.read_bytes())
        (folder/'config.json').write_text(json.dumps(json.loads((good/'config.json').read_text()) | change))
        refused(f'transformers:{folder}', *words)
    (tmp_path/'grey'/'preprocessor_config.json').unlink()
    (good/'preprocessor_config.json').unlink()
    refused(f'transformers:{good}', 'preprocessor_config.json', 'normalised')
    refused(f'timm:resnet18={tmp_path/"none.safetensors"}', 'there is no file')
    refused(f'timm:resnet18={pickle/"pytorch_model.bin"}', 'a pickle can run code')
    refused(f'onnx:{tmp_path/"none.onnx"}', 'there is no file')
    (tmp_path/'text.onnx').write_text('no graph')
    refused(f'onnx:{tmp_path/"text.onnx"}', 'onnxruntime cannot read it')


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    need('transformers')
    saved(tmp_path, *IMAGE['vit'][:5])
    (tmp_path/'evil.py').write_text(f'open({str(tmp_path/"ran")!r}, "w").close()\nfrom transformers import ViTModel as Net, ViTConfig as Config')
    config = json.loads((tmp_path/'config.json').read_text())
    (tmp_path/'config.json').write_text(json.dumps(config | dict(auto_map=dict(AutoModel='evil.Net', AutoConfig='evil.Config'))))
    try: open_encoder(f'transformers:{tmp_path}')
    except StudyError: pass
    assert not (tmp_path/'ran').exists()


@pytest.mark.parametrize('spec, package', [('timm:resnet18', 'timm'), ('transformers:facebook/dinov2-small', 'transformers'), ('onnx:x.onnx', 'onnxruntime')])
def test_an_absent_extra_is_named(spec, package, monkeypatch):
    import importlib.util
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda n, *a: None if n == package else find(n, *a))
    refused(spec, f'needs the package {package}', "pip install 'kinetics_dance[encoders]'")


def test_too_few_frames_are_not_repeated_in_silence(tmp_path):
    need('transformers')
    saved(tmp_path, *VIDEO['videomae'][:5])
    with pytest.raises(StudyError, match='a clip of 3 frames is fewer than it wants: 4; set clip_frames: 4'): open_encoder(f'transformers:{tmp_path}')(normalise(film(3)))
    saved(tmp_path/'v', *VIDEO['vjepa2'][:5])
    with pytest.raises(StudyError, match='not made of 2 per time step; set clip_frames: 4'): open_encoder(f'transformers:{tmp_path/"v"}')(normalise(film(3)))


def test_what_is_known_of_an_encoder_is_told():
    for spec, h in KNOWN_ENCODERS.items():
        assert read_spec(spec) and h.source.startswith('arXiv:') and h.licence and h.millions
        said = h.pretraining.lower()
        assert ('kinetics' in said) == bool(h.labels or h.pixels) or not h.public
    assert encoder_history('transformers:/some/folder').pretraining.startswith('unknown')


def test_parameters_of_the_table_are_those_of_the_networks():
    need('timm', 'transformers')
    import timm, transformers as t
    count = lambda net: sum(p.numel() for p in net.parameters())/1e6
    configs = {'videomae-base': ('VideoMAEModel', 'VideoMAEConfig'), 'vjepa2-vitl-fpc64-256': ('VJEPA2Model', 'VJEPA2Config'),
               'timesformer-base-finetuned-k400': ('TimesformerModel', 'TimesformerConfig'), 'vivit-b-16x2-kinetics400': ('VivitModel', 'VivitConfig')}
    for spec, h in KNOWN_ENCODERS.items():
        kind, name = spec.split(':')
        with torch.device('meta'):
            if kind == 'timm': net = timm.create_model(name, num_classes=0)
            elif (known := configs.get(name.split('/')[1])) is None: continue
            else: net = getattr(t, known[0])(getattr(t, known[1])())
        assert abs(count(getattr(net, 'encoder', net) if 'vjepa2' in name else net)-h.millions) < .06, spec
