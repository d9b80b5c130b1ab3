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
    'vjepa2': ('VJEPA2Config', 'VJEPA2Model', 'VJEPA2VideoProcessor', VJEPA2, dict(do_resize=False, crop_size=SQUARE), 6, (3, 4)),     # else it cuts a border
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
    torch.onnx.export(net.eval(), (x,), path, dynamo=True, verbose=False, external_data=False, dynamic_shapes=({0: torch.export.Dim('b')},))
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


# ---- a study -------------------------------------------------------------------------------------------------------------------------------------------------

STUDY = dict(study='tiny', seeds=[0], epochs=2, lr=[.002], clip_frames=4, batch_size=4, train='head', crop_height=44, crop_width=44, frame_hidden=16, lstm_hidden=16,
             transformer_width=16, transformer_heads=2, transformer_depth=1)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    from conftest import tiny_study
    return tiny_study(tmp_path_factory.mktemp('runs'), ('windmill', 'bounce'))


def settings(tiny, spec, *heads, **more):
    return STUDY | dict(runs=str(tiny), encoders=dict(mine=spec), encoder_models=[f'mine-{h}' for h in heads]) | more


def test_a_video_network_is_trained_on_stored_tokens_and_predicts_from_its_folder_alone(tiny, tmp_path):
    need('transformers')
    import shutil
    from kinetics_dance.models.config import load_model, read_config
    from kinetics_dance.training.runs import train_run
    folder = tmp_path/'encoder'
    saved(folder, *VIDEO['videomae'][:5])
    news = []
    config = train_run('mine-attentive', settings(tiny, f'transformers:{folder}', 'attentive'), 0, news.append)
    assert config['pretraining'].startswith('unknown')
    assert sorted(config['encoder']['files']) == ['config.json', 'model.safetensors', 'preprocessor_config.json']
    at = tiny/'tiny'/'models'/'mine-attentive'/'seed0'
    from safetensors import safe_open
    with safe_open(at/'model.safetensors', 'pt') as f: assert all(k.startswith('head.') for k in f.keys())
    said = next(l for l in news if l.startswith('features:'))
    assert '2 × 4 × 24 numbers (float16)' in said and 'free' in said
    files = list((tiny/'tiny'/'features').glob('*/*.npy'))
    assert len(files) == 1 and np.load(files[0]).shape[1:] == (2, 1, 4, 24)
    moved = tmp_path/'elsewhere'
    shutil.copytree(at, moved)
    shutil.rmtree(folder)
    x = normalise(film(4, 44))
    with torch.inference_mode(): assert torch.equal(load_model(moved, read_config(moved))(x), load_model(at)(x))
    # the same predictions as those that the training wrote, up to half precision
    import pandas as pd
    from kinetics_dance.loading.dataloader import Clips
    from kinetics_dance.loading.reader import FrameStore
    from kinetics_dance.evaluation.perturbations import predict
    from kinetics_dance.training.study_files import study_clips
    t = study_clips(tiny/'tiny')
    clips = Clips(FrameStore(tiny/'tiny'/'frames'), t[t.split == 'test'].sort_values('clip_id'), config['classes'], 4, (44, 44))
    wrote = pd.read_parquet(tiny/'tiny'/'predictions'/'mine-attentive'/'seed0.parquet')
    wrote = wrote[wrote.split == 'test'][[f'p_{c}' for c in config['classes']]].to_numpy()
    np.testing.assert_allclose(predict(load_model(moved), clips), wrote, atol=1e-5)
    shuffled = pd.read_parquet(tiny/'tiny'/'predictions'/'mine-attentive'/'shuffled'/'seed0.parquet')
    assert np.abs(shuffled[[f'p_{c}' for c in config['classes']]].to_numpy()-wrote).max() > 1e-6     # it was asked about other frames
    # a head does not answer for other weights
    from safetensors.torch import load_file, save_file
    state = load_file(moved/'encoder'/'model.safetensors')
    (moved/'encoder'/'model.safetensors').unlink()
    save_file({k: v+1e-3 if v.is_floating_point() else v for k, v in state.items()}, moved/'encoder'/'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(StudyError, match='other weights than the one this head was trained on'): load_model(moved)


def written(folder, name, head, **how):
    "The folder of a model whose encoder is timm's, with random weights from a file; the network and its config"
    import timm
    from safetensors.torch import save_file
    from kinetics_dance.models.config import write_model
    from kinetics_dance.models.encoder_heads import EncoderModel
    save_file(timm.create_model('vit_tiny_patch16_224', num_classes=0, img_size=32).state_dict(), folder/'net.safetensors')
    spec = f'timm:vit_tiny_patch16_224@32={folder/"net.safetensors"}'
    net = EncoderModel(3, spec, head)
    config = dict(format=1, model='kinetics_dance.models.encoder_heads:EncoderModel', arguments=dict(encoder=spec, head=head), classes=['a', 'b', 'c'],
                  clip_seconds=3., encoder=net.save_encoder(folder/name, folder/'shared'), **how)
    write_model(folder/name, net, config)
    return net, config


def test_the_command_predicts_with_an_encoder(tmp_path):
    "From a folder that was moved, and without the files that its encoder came from"
    need('timm')
    import shutil
    from kinetics_dance.inference import watch_videos
    from kinetics_dance.synthetic import dancers, uploads
    net, config = written(tmp_path, 'first', 'transformer', frames=4, crop=[48, 48], stored=dict(height=48, width=64))
    (tmp_path/'net.safetensors').unlink()
    shutil.rmtree(tmp_path/'shared')
    shutil.move(tmp_path/'first', tmp_path/'moved')
    uploads.write_video(tmp_path/'film.mp4', dancers.render_clip('bounce', 0, 0))
    from kinetics_dance.models.cost import count_parameters
    counted = count_parameters(net)
    assert counted['head_parameters'] == sum(p.numel() for p in net.parameters()) and counted['parameters'] == counted['head_parameters']+config['encoder']['parameters']
    rows = watch_videos([tmp_path/'film.mp4'], tmp_path/'moved', 3)
    assert len(rows) == 1 and 'error' not in rows[0] and rows[0]['label'] in ('a', 'b', 'c')


def test_a_model_with_an_encoder_is_exported(tmp_path):
    "Encoder and head are one graph, which says what the model says"
    need('timm', 'onnx', 'onnxscript', 'onnxruntime')
    import onnxruntime
    from kinetics_dance.deploy.export import export_model
    from kinetics_dance.models.config import load_model
    written(tmp_path, 'm', 'attentive', frames=3, crop=[32, 32], stored=dict(height=32, width=32))
    x = film(3)
    said = onnxruntime.InferenceSession(export_model(tmp_path/'m')).run(None, dict(frames=x.numpy()))[0]
    with torch.inference_mode(): want = load_model(tmp_path/'m')(normalise(x)).softmax(-1)
    np.testing.assert_allclose(said, want, atol=1e-4)


def test_an_onnx_encoder_travels_with_its_head(tmp_path):
    from kinetics_dance.models.config import load_model, write_model
    from kinetics_dance.models.encoder_heads import EncoderModel
    exported(tmp_path/'clips.onnx', Columns(), torch.rand(2, 3, 5, 16, 16), time_steps='5')
    spec = f'onnx:{tmp_path/"clips.onnx"}'
    net = EncoderModel(3, spec, 'lstm')
    config = dict(format=1, model='kinetics_dance.models.encoder_heads:EncoderModel', arguments=dict(encoder=spec, head='lstm'), classes=['a', 'b', 'c'],
                  frames=5, crop=[16, 16], stored=dict(height=16, width=16), clip_seconds=3., encoder=net.save_encoder(tmp_path/'m', tmp_path/'shared'))
    write_model(tmp_path/'m', net, config)
    (tmp_path/'clips.onnx').unlink()
    x = normalise(film(5, 16))
    with torch.no_grad(): torch.testing.assert_close(load_model(tmp_path/'m')(x), net.eval()(x))
    with pytest.raises(StudyError, match='cannot be trained; set train: head'): EncoderModel(3, f'onnx:{tmp_path/"m"/"encoder"/"clips.onnx"}', train='all')


def test_heads_of_one_encoder_share_its_tokens(tiny, monkeypatch):
    "Five heads, and the encoder looks at each clip once"
    from kinetics_dance.loading.reader import FrameStore
    from kinetics_dance.models import encoders
    from kinetics_dance.training.runs import train_run
    torch.manual_seed(0)
    s = settings(tiny, 'backbone:small', 'linear', 'attentive', 'vote', 'lstm', 'transformer')
    # untrained backbones differ by seed; these have one seed, and are made first of all
    looks, ask = [], encoders.PictureEncoder.ask
    monkeypatch.setattr(encoders.PictureEncoder, 'ask', lambda self, x: looks.append(len(x)) or ask(self, x))
    before, sizes = len(list((tiny/'tiny'/'features').glob('*/features.json'))), []
    for name in s['encoder_models']:
        config = train_run(name, s, 0, None)
        sizes.append(config['head_parameters'])
        assert 0 < config['head_parameters'] < config['parameters']
    clips = len(FrameStore(tiny/'tiny'/'frames'))
    assert len(list((tiny/'tiny'/'features').glob('*/features.json'))) == before+1
    assert len(looks) == clips and len(set(sizes)) == 5


def test_a_killed_storing_goes_on(tiny, tmp_path, monkeypatch):
    from kinetics_dance.loading.reader import FrameStore
    from kinetics_dance.models.encoder_heads import EncoderFeatures
    from kinetics_dance.training import frozen_features as lib
    frames = FrameStore(tiny/'tiny'/'frames')
    net = EncoderFeatures(open_encoder('untrained:small'), 2).requires_grad_(False)
    whole = lib.build_features(net, frames, tmp_path/'whole', (44, 44))
    monkeypatch.setattr(lib, 'PART_CLIPS', 3)
    class Killed(BaseException): pass
    look, seen = lib._look, []
    def dies(net, frames, ids, *a):
        seen.extend(ids)
        if len(seen) == 6: raise Killed
        return look(net, frames, ids, *a)
    monkeypatch.setattr(lib, '_look', dies)
    with pytest.raises(Killed): lib.build_features(net, frames, tmp_path/'part', (44, 44))
    assert [p.name for p in sorted((tmp_path/'part').glob('*/*.npy'))] == ['000000.npy'] and not list((tmp_path/'part').glob('*/.*'))
    first = seen[:3]
    seen.clear()
    monkeypatch.setattr(lib, '_look', lambda net, frames, ids, *a: seen.extend(ids) or look(net, frames, ids, *a))
    part = lib.build_features(net, frames, tmp_path/'part', (44, 44))
    assert set(seen[1:]).isdisjoint(first[1:]) and len(part.parts) == -(-len(frames)//3)
    for c in frames.clip_ids: assert np.array_equal(part[c], whole[c])


def test_no_room_is_said_before_anything_is_written(tiny, tmp_path, monkeypatch):
    import shutil
    from kinetics_dance.loading.reader import FrameStore
    from kinetics_dance.models.encoder_heads import EncoderFeatures
    from kinetics_dance.training.frozen_features import build_features
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(StudyError, match=r'features: .* MB, but the disk has .*grid'):
        build_features(EncoderFeatures(open_encoder('untrained:small'), 2), FrameStore(tiny/'tiny'/'frames'), tmp_path, (44, 44))
    assert not list(tmp_path.rglob('*.npy'))


def test_an_encoder_is_fine_tuned_with_smaller_steps_below(tiny, tmp_path):
    need('transformers')
    from kinetics_dance.models.config import load_model
    from kinetics_dance.models.encoder_heads import EncoderModel
    from kinetics_dance.training.learner import rates, split_parameters
    from kinetics_dance.training.recipe import Recipe
    from kinetics_dance.training.runs import train_run
    folder = tmp_path/'encoder'
    saved(folder, *VIDEO['videomae'][:5])
    s = settings(tiny, f'transformers:{folder}', 'linear', train='all', layer_decay=.5, gradient_checkpointing=True, epochs=1)
    net = EncoderModel(4, f'transformers:{folder}', train='all', layer_decay=.5)
    lrs, _ = rates(net, Recipe(backbone_lr=.1), 1.)
    assert sorted({round(v, 6) for v in lrs}) == [.0125, .025, .05, 1.]          # embedding, two layers, head
    assert sum(len(g) for g in split_parameters(net)) == sum(p.requires_grad for p in net.parameters())
    before = {k: v.clone() for k, v in net.encoder.state_dict().items()}
    config = train_run('mine-linear', s, 0, None)
    again = load_model(tiny/'tiny'/'models'/'mine-linear'/'seed0')
    assert any(not torch.equal(v, before[k]) for k, v in again.encoder.state_dict().items())
    assert config['encoder']['files'] == ['config.json', 'preprocessor_config.json']        # the weights are the model's own


def test_checkpointing_changes_no_gradient(tmp_path):
    need('transformers')
    from kinetics_dance.models.encoder_heads import EncoderModel
    saved(tmp_path, *VIDEO['videomae'][:5])
    grads = []
    for on in (False, True):
        torch.manual_seed(0)
        net = EncoderModel(3, f'transformers:{tmp_path}', train='all', checkpointing=on).train()
        net(normalise(film(4))).logsumexp(1).sum().backward()
        grads.append({k: p.grad for k, p in net.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 10
    for k in grads[0]: torch.testing.assert_close(grads[0][k], grads[1][k], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('change, words', [
    (dict(encoder_models=['mine-linaer']), "did you mean 'linear'"), (dict(encoder_models=['mein-linear']), "no encoder 'mein'"),
    (dict(encoders={'Mine': 'untrained:small'}, encoder_models=[]), "'Mine' is no name"), (dict(encoders=dict(mine='untraind:small')), "did you mean 'untrained'"),
    (dict(encoders=dict(mine='transformers:facebook/vjepa2-vitl-fpc64-256')), 'allow_kinetics_pretraining: true'), (dict(encoders=['untrained:small']), 'expected a mapping')])
def test_a_study_with_a_wrong_encoder_is_refused_before_it_starts(change, words):
    from kinetics_dance.study.settings import check_study, read_settings
    with pytest.raises(StudyError) as e: check_study(read_settings('smoke') | dict(encoders=dict(mine='untrained:small')) | change)
    assert words in str(e.value) and '\n' not in str(e.value)


def test_a_model_file_names_no_path(tmp_path):
    from kinetics_dance.models.encoder_heads import EncoderModel
    for arguments, about in ((dict(encoder='transformers:/etc'), {}), (dict(encoder='transformers:../x'), {}), (dict(encoder='onnx:/etc/passwd'), {}),
                             (dict(encoder='onnx:x'), dict(files=['../../x.onnx']))):
        with pytest.raises(StudyError): EncoderModel.saved_arguments(dict(arguments=arguments, encoder=about), tmp_path)
    got = EncoderModel.saved_arguments(dict(arguments=dict(encoder='onnx:/somebody/else.onnx'), encoder=dict(files=['else.onnx'])), tmp_path)
    assert got['encoder'] == f'onnx:{tmp_path}/encoder/else.onnx'
    assert EncoderModel.saved_arguments(dict(arguments=dict(encoder='timm:resnet18=/etc/x.safetensors'), encoder={}), tmp_path)['encoder'] == 'timm:resnet18'


def test_neither_library_is_loaded_unless_it_is_asked_for():
    import subprocess, sys
    code = 'import sys; import kinetics_dance.inference, kinetics_dance.models.encoder_heads, kinetics_dance.training.runs, kinetics_dance.study.cli; ' \
           'print(*({"timm", "transformers", "onnxruntime"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip() == ''
