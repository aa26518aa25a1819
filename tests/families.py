"""Models to test with: a tiny one with random weights for each family that diffusers draws pictures from text with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, AutoencoderKLQwenImage, DiffusionPipeline, VQModel
    from transformers import (
        BertTokenizer,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        Gemma2Model,
        GemmaTokenizer,
        PreTrainedTokenizerFast,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Tokenizer,
        T5EncoderModel,
        T5Tokenizer,
    )

DEMO = Path(__file__).parent.parent / "sdcli" / "demo"

BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {}
"""What builds each model: the pipeline's class name, with the variant's after it where there are several."""
SIZES: dict[str, tuple[int, int]] = {}
"""A width and a height in pixels that each model draws quickly."""


def saved(name: str, to: Path) -> Path:
    """Build a model and save it as a folder in diffusers' layout."""
    pipeline = BUILDERS[name]()
    pipeline.save_pretrained(to, safe_serialization=True)
    return to


def controlnet(model: Path, to: Path) -> Path:
    """Save a ControlNet for a saved model with a U-Net."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(model / "unet", local_files_only=True)
    torch.manual_seed(0)
    lively(ControlNetModel.from_unet(unet, load_weights_from_unet=False)).save_pretrained(to)
    return to


def family(
    name: str, width: int = 64, height: int = 64
) -> Callable[[Callable[[], dict[str, Any]]], Callable[[], DiffusionPipeline]]:
    """Enter what makes a pipeline's components."""

    def enter(components: Callable[[], dict[str, Any]]) -> Callable[[], DiffusionPipeline]:
        def build() -> DiffusionPipeline:
            import diffusers
            import torch

            torch.manual_seed(0)
            with warnings.catch_warnings():
                # Chroma's transformer uses names that diffusers itself wants given up.
                warnings.simplefilter("ignore", FutureWarning)
                parts = {k: lively(v) if isinstance(v, torch.nn.Module) else v for k, v in components().items()}
                pipeline: DiffusionPipeline = getattr(diffusers, name.split()[0])(**parts)
            return pipeline

        BUILDERS[name], SIZES[name] = build, (width, height)
        return build

    return enter


EMBEDDINGS = ("shared.weight", "embed_tokens.weight", "token_embedding.weight", "word_embeddings.weight")
NORMS = ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Draw a model's weights anew, so that what goes in has an effect on what comes out (some layers start as zeros)."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                inputs = 1 if name.endswith(EMBEDDINGS) else weight[0].numel()
                if weight.ndim == 5:  # A picture is one frame, and meets one of a video layer's taps.
                    inputs //= weight.shape[2]
                # A prompt is a few tokens among many: let attention weigh more.
                weight.normal_(0, inputs**-0.5 * (4 if "attn.to_out" in name else 1))
            elif name.endswith(NORMS):
                weight.fill_(3)
            elif name == "pad_token" or not weight.any():  # Lumina leaves the one as memory happens to be.
                weight.normal_(0, 0.02)
    return model.eval()


# Tokenizers: words of the bundled model, single characters for all other text


def words() -> list[str]:
    vocabulary = json.loads((DEMO / "tokenizer" / "vocab.json").read_text())
    found = (token.removesuffix("</w>") for token in vocabulary if token.endswith("</w>"))
    return [word for word in found if len(word) > 1 and word.isascii() and word.isalpha()]


def merged(alphabet: list[str], start: str, special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary and merges that join each word's letters from its start on, which is marked with `start`."""
    merges = list(dict.fromkeys((start + word[:at], word[at]) for word in words() for at in range(len(word))))
    tokens = dict.fromkeys([*special, *alphabet, *(a + b for a, b in merges)])
    return {token: at for at, token in enumerate(tokens)}, merges


def byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def clip_tokenizer(**changed: Any) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(DEMO / "tokenizer", local_files_only=True, **changed)


def t5_tokenizer(length: int = 512) -> T5Tokenizer:
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(chr(at), -12.0) for at in range(33, 127)]
    whole = [("▁" + word, -8.0) for word in words()]
    vocabulary = [*special, ("▁", -4.0), *letters, *whole]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, additional_special_tokens=[], model_max_length=length)


def gemma_tokenizer(length: int = 8192) -> GemmaTokenizer:
    from transformers import GemmaTokenizer

    bytes_ = [f"<0x{at:02X}>" for at in range(256)]
    alphabet = [*bytes_, "▁", *(chr(at) for at in range(33, 127))]
    vocabulary, merges = merged(alphabet, "▁", ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    return GemmaTokenizer(
        vocab=vocabulary, merges=merges, add_bos_token=True, model_max_length=length, padding_side="right"
    )


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen's way of writing a conversation."""


def qwen_tokenizer() -> Qwen2Tokenizer:
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary, merges = merged(byte_alphabet(), "Ġ", special)
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=4096,
        chat_template=CHAT,
    )


def byte_tokenizer(*start: str, end: str = "<|endoftext|>", side: str = "right") -> PreTrainedTokenizerFast:
    """One of no family's own class, that writes special tokens before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = merged(byte_alphabet(), "Ġ", [end, *start])
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*start, "$A"], special_tokens=[(token, vocabulary[token]) for token in start]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start[0],
        eos_token=end,
        pad_token=end,
        padding_side=side,
        model_max_length=4096,
    )


def bert_tokenizer() -> BertTokenizer:
    from transformers import BertTokenizer

    letters = [chr(at) for at in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *words()]
    return BertTokenizer(vocab={token: at for at, token in enumerate(tokens)}, model_max_length=77)


# Text encoders


def clip(
    width: int = 16, layers: int = 2, projected: bool = False, **changed: Any
) -> CLIPTextModel | CLIPTextModelWithProjection:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = json.loads((DEMO / "tokenizer" / "vocab.json").read_text())
    config = {
        "vocab_size": len(vocabulary),
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "projection_dim": width,
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "pad_token_id": vocabulary["<|endoftext|>"],
    }
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config | changed))


def t5(tokenizer: T5Tokenizer, width: int = 16) -> T5EncoderModel:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8,
        relative_attention_max_distance=64,
    )
    return T5EncoderModel(config)


# Autoencoders


def autoencoder(latent_channels: int = 4, **changed: Any) -> AutoencoderKL:
    """One with a factor of 8 between pixels and latents."""
    from diffusers import AutoencoderKL

    config: dict[str, Any] = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": latent_channels,
        "sample_size": 64,
    }
    return AutoencoderKL(**config | changed)


FLUX_VAE: dict[str, Any] = {
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.1159,
    "scaling_factor": 0.3611,
}


# Stable Diffusion


@family("StableDiffusionXLPipeline")
def sdxl() -> dict[str, Any]:
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        layers_per_block=2,
        attention_head_dim=(1, 2, 2),
        norm_num_groups=4,
        use_linear_projection=True,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return {
        "unet": unet,
        "vae": autoencoder(scaling_factor=0.13025),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip(projected=True, hidden_act="gelu"),
        "tokenizer_2": clip_tokenizer(pad_token="!"),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
    }


# Flux


def flux_parts(guided: bool) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    tokenizer = t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )
    if guided:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return {
        "transformer": transformer,
        "vae": autoencoder(**FLUX_VAE),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5(tokenizer),
        "tokenizer_2": tokenizer,
        "scheduler": scheduler,
    }


@family("FluxPipeline")
def flux() -> dict[str, Any]:
    return flux_parts(guided=True)


@family("FluxPipeline schnell")
def flux_schnell() -> dict[str, Any]:
    return flux_parts(guided=False)


@family("StableDiffusion3Pipeline")
def sd3() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    tokenizer = t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=32,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return {
        "transformer": transformer,
        # diffusers inpaints with sixteen channels only, which is what all models have.
        "vae": autoencoder(
            16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305
        ),
        "text_encoder": clip(projected=True),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip(projected=True, hidden_act="gelu"),
        "tokenizer_2": clip_tokenizer(pad_token="!"),
        "text_encoder_3": t5(tokenizer, width=32),
        "tokenizer_3": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


# PixArt


def pixart_parts(length: int) -> dict[str, Any]:
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    tokenizer = t5_tokenizer(length)
    transformer = PixArtTransformer2DModel(
        sample_size=32,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=16,
    )
    return {
        "transformer": transformer,
        "vae": autoencoder(),
        "text_encoder": t5(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    }


@family("PixArtSigmaPipeline", 256, 256)
def pixart_sigma() -> dict[str, Any]:
    return pixart_parts(300)


@family("PixArtAlphaPipeline", 256, 256)
def pixart_alpha() -> dict[str, Any]:
    return pixart_parts(120)


# Others whose text encoder is a T5


@family("AuraFlowPipeline")
def auraflow() -> dict[str, Any]:
    from diffusers import AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = t5_tokenizer()
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=64,
    )
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=256,
    )
    return {
        "transformer": transformer,
        "vae": autoencoder(scaling_factor=0.13025),
        "text_encoder": UMT5EncoderModel(config),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.73),
    }


@family("HunyuanDiTPipeline")
def hunyuandit() -> dict[str, Any]:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel
    from transformers import BertConfig, BertModel

    tokenizer, tokenizer_2 = bert_tokenizer(), t5_tokenizer(256)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
    )
    transformer = HunyuanDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        hidden_size=16,
        activation_fn="gelu-approximate",
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        use_style_cond_and_image_meta_size=False,
    )
    return {
        "transformer": transformer,
        "vae": autoencoder(scaling_factor=0.13025),
        "text_encoder": BertModel(config),
        "tokenizer": tokenizer,
        "text_encoder_2": t5(tokenizer_2),
        "tokenizer_2": tokenizer_2,
        "scheduler": DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.018,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            steps_offset=1,
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def movq() -> VQModel:
    """An autoencoder of Kandinsky's, with a factor of 8."""
    from diffusers import VQModel

    return VQModel(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=16,
        vq_embed_dim=4,
        norm_type="spatial",
    )


@family("Kandinsky3Pipeline")
def kandinsky3() -> dict[str, Any]:
    from diffusers import DDPMScheduler, Kandinsky3UNet

    tokenizer = t5_tokenizer(128)
    unet = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=8,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(8, 16, 16, 16),
        cross_attention_dim=16,
        encoder_hid_dim=16,
    )
    return {
        "unet": unet,
        "movq": movq(),
        "text_encoder": t5(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="squaredcos_cap_v2",
            clip_sample=True,
            steps_offset=1,
        ),
    }


@family("KandinskyV22CombinedPipeline")
def kandinsky22() -> dict[str, Any]:
    """The prior and the decoder in one."""
    from diffusers import DDPMScheduler, PriorTransformer, UnCLIPScheduler, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=16,
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        resnet_time_scale_shift="scale_shift",
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=16,
        image_size=28,
        patch_size=14,
    )
    return {
        "unet": unet,
        "movq": movq(),
        "scheduler": DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="linear", variance_type="learned_range"
        ),
        "prior_prior": PriorTransformer(num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=16),
        "prior_image_encoder": CLIPVisionModelWithProjection(vision),
        "prior_text_encoder": clip(projected=True),
        "prior_tokenizer": clip_tokenizer(),
        "prior_scheduler": UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        "prior_image_processor": CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28),
    }


@family("ChromaPipeline")
def chroma() -> dict[str, Any]:
    from diffusers import ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    tokenizer = t5_tokenizer()
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return {
        "transformer": transformer,
        "vae": autoencoder(**FLUX_VAE),
        "text_encoder": t5(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0),
    }


@family("CogView3PlusPipeline")
def cogview3plus() -> dict[str, Any]:
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusTransformer2DModel

    tokenizer = t5_tokenizer(224)
    transformer = CogView3PlusTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=32,
    )
    return {
        "transformer": transformer,
        "vae": autoencoder(),
        "text_encoder": t5(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": CogVideoXDDIMScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
        ),
    }


# Those whose text encoder is a language model: Gemma


def gemma2(tokenizer: GemmaTokenizer, layers: int) -> Gemma2Model:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=128,
    )
    return Gemma2Model(config)


def sana_parts(**changed: Any) -> dict[str, Any]:
    """With a factor of 32 between pixels and latents."""
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    tokenizer = gemma_tokenizer()
    vae = AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        **changed,
    )
    return {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": gemma2(tokenizer, layers=1),
        "tokenizer": tokenizer,
    }


@family("SanaPipeline")
def sana() -> dict[str, Any]:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    return sana_parts() | {"scheduler": scheduler}


@family("SanaSprintPipeline")
def sana_sprint() -> dict[str, Any]:
    from diffusers import SCMScheduler

    parts = sana_parts(guidance_embeds=True, guidance_embeds_scale=0.1, qk_norm="rms_norm_across_heads")
    return parts | {"scheduler": SCMScheduler(prediction_type="trigflow", sigma_data=0.5)}


@family("Lumina2Pipeline")
def lumina2() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel

    tokenizer = gemma_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 64, 64),
        cap_feat_dim=16,
    )
    return {
        "transformer": transformer,
        "vae": autoencoder(**FLUX_VAE),
        "text_encoder": gemma2(tokenizer, layers=2),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
    }


@family("LuminaPipeline")
def lumina() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel
    from transformers import GemmaConfig, GemmaModel

    tokenizer = gemma_tokenizer()
    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = LuminaNextDiT2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        norm_eps=1e-5,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=16,
    )
    return {
        "transformer": transformer,
        "vae": autoencoder(scaling_factor=0.13025),
        "text_encoder": GemmaModel(config),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


# Those whose text encoder is a language model: Qwen


def qwen3_config(tokenizer: Qwen2Tokenizer, layers: int = 2, width: int = 16) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
    )


VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}


def qwen_vl(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=VISION))


def qwen_autoencoder() -> AutoencoderKLQwenImage:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


@family("QwenImagePipeline")
def qwenimage() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

    tokenizer = qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return {
        "transformer": transformer,
        "vae": qwen_autoencoder(),
        "text_encoder": qwen_vl(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
    }


@family("ZImagePipeline")
def zimage() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
    from transformers import Qwen3Model

    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    return {
        "transformer": transformer,
        "vae": autoencoder(**FLUX_VAE),
        "text_encoder": Qwen3Model(qwen3_config(tokenizer)),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


@family("OvisImagePipeline")
def ovis() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, OvisImageTransformer2DModel
    from transformers import Qwen3Model

    tokenizer = qwen_tokenizer()
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return {
        "transformer": transformer,
        "vae": autoencoder(**FLUX_VAE),
        "text_encoder": Qwen3Model(qwen3_config(tokenizer)),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }


@family("Flux2KleinPipeline")
def flux2_klein() -> dict[str, Any]:
    """One whose text encoder has the 28 layers of which the pipeline takes the 9th, 18th and 27th one's output."""
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Qwen3ForCausalLM

    tokenizer = qwen_tokenizer()
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": Qwen3ForCausalLM(qwen3_config(tokenizer, layers=28, width=8)),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }


@family("Krea2Pipeline")
def krea2() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLModel

    tokenizer = qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]},
    }
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return {
        "transformer": transformer,
        "vae": qwen_autoencoder(),
        "text_encoder": Qwen3VLModel(
            Qwen3VLConfig(text_config=text, vision_config=VISION | {"deepstack_visual_indexes": [0]})
        ),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
        "text_encoder_select_layers": (0, 1, 2),
    }


# CogView4, whose text encoder is a GLM


@family("CogView4Pipeline")
def cogview4() -> dict[str, Any]:
    from diffusers import CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import GlmConfig, GlmModel

    tokenizer = byte_tokenizer("[gMASK]", "<sop>", side="left")
    config = GlmConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=0,
    )
    transformer = CogView4Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
    )
    return {
        "transformer": transformer,
        "vae": autoencoder(use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": GlmModel(config),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(
            base_shift=0.25,
            max_shift=0.75,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    }


# Stable Diffusion 1.x and 2.x


@family("LatentConsistencyModelPipeline")
def lcm() -> dict[str, Any]:
    from diffusers import LCMScheduler, UNet2DConditionModel

    config = UNet2DConditionModel.load_config(DEMO / "unet")
    config |= {"block_out_channels": (16, 32, 32), "cross_attention_dim": 16, "time_cond_proj_dim": 16}
    return {
        "unet": UNet2DConditionModel.from_config(config),
        "vae": autoencoder(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "scheduler": LCMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=1,
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@family("StableDiffusionPipeline 2")
def sd2() -> dict[str, Any]:
    """One of 2.x's shape, which is told by a text encoder 1024 wide: some 40 MB."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=2,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=True,
        cross_attention_dim=1024,
    )
    return {
        "unet": unet,
        "vae": autoencoder(),
        "text_encoder": clip(width=1024, layers=2, num_attention_heads=16, hidden_act="gelu", projection_dim=512),
        "tokenizer": clip_tokenizer(pad_token="!"),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
