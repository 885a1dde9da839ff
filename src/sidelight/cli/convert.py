"""`sidelight convert`: what it takes and does, for each kind of checkpoint that others published.

Nothing in such a file is run, every name and shape is checked, and the folder appears whole or not at all; the work
is in ``convert.py`` and beside the backbones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_USAGE = {
    "r2-tuning": "FILE.pth --run NAME --out DIR [--video-dim N] [--text-dim N] [--hidden N] [--weights NAME|DIR] "
    "[--padding independent|exact]",
    "internvideo2": "FILE.pt --out DIR [--vocabulary vocab.txt] [--heads N] [--pool-heads N] [--text-heads N] "
    "[--activation gelu_tanh|gelu]",
    "clip": "FILE.pt --out DIR [--vocabulary DIR] [--heads N] [--text-heads N]",
}


def add_convert(parser: ArgumentParser) -> None:
    """One sub-command for each kind of file."""
    from jsonargparse import ArgumentParser as Parser

    parser.usage = "".join(f"\n  sidelight convert {kind} {options}" for kind, options in _USAGE.items())
    commands = parser.add_subcommands(metavar=" | ".join(_USAGE))
    kinds = {
        kind: Parser(usage=f"sidelight convert {kind} {options}", exit_on_error=False, default_env=False)
        for kind, options in _USAGE.items()
    }
    for kind, (file, saved) in {
        "r2-tuning": ("FILE.pth", "as R2-Tuning's own code saved it"),
        "internvideo2": ("FILE.pt", "as published: bare, or inside 'module' or 'model'"),
        "clip": ("FILE.pt", "as OpenAI released it, or a state dict with its names (.pt or .safetensors)"),
    }.items():
        kinds[kind].add_argument("file", metavar=file, help=f"{saved}; nothing in it is executed")
        kinds[kind].add_argument("--out", required=True, metavar="DIR", help="folder to make; new, or empty")
    _r2_tuning_options(kinds["r2-tuning"])
    _internvideo2_options(kinds["internvideo2"])
    _clip_options(kinds["clip"])
    commands.add_subcommand("r2-tuning", kinds["r2-tuning"], help="a trained side-tuner, into a checkpoint")
    commands.add_subcommand("internvideo2", kinds["internvideo2"], help="a backbone, into a folder of weights")
    commands.add_subcommand("clip", kinds["clip"], help="likewise, into Hugging Face's layout")


def _r2_tuning_options(parser: ArgumentParser) -> None:
    named = "qvhighlights, charades-sta, tacos, ego4d-nlq, youtube-highlights-DOMAIN, tvsum-DOMAIN"
    parser.add_argument("--run", required=True, metavar="NAME", help=f"the published run that it is: {named}")
    own = "for a run of your own, which is otherwise as the recipe says"
    parser.add_argument("--video-dim", type=int, help=f"width of the backbone's video features (768), {own}")
    parser.add_argument("--text-dim", type=int, help=f"width of its text features (512), {own}")
    parser.add_argument("--hidden", type=int, help=f"width inside the model (256), {own}")
    weights = "CLIP weights that made its features (openai/clip-vit-base-patch32): their name, the digest in a feature "
    weights += "recipe, or their folder; needed if their widths are others"
    parser.add_argument("--weights", metavar="NAME|DIR", help=weights)
    padding = "in a padded batch: each sample as if alone, or the numbers of the published code"
    parser.add_argument("--padding", choices=["independent", "exact"], default="independent", help=padding)


def _internvideo2_options(parser: ArgumentParser) -> None:
    words = "vocab.txt of bert-large-uncased, which the file does not hold; the one beside it unless given"
    parser.add_argument("--vocabulary", metavar="vocab.txt", help=words)
    heads = "attention heads of the {}, which no shape tells; the published ones of its size unless given"
    parser.add_argument("--heads", type=int, help=heads.format("video tower"))
    parser.add_argument("--pool-heads", type=int, help=heads.format("video tower's pool"))
    parser.add_argument("--text-heads", type=int, help="attention heads of the text tower; one per 64 unless given")
    activation = "gelu for weights trained without the fused kernel; gelu_tanh, as the released ones, unless given"
    parser.add_argument("--activation", choices=["gelu_tanh", "gelu"], help=activation)


def _clip_options(parser: ArgumentParser) -> None:
    words = "folder with tokenizer.json, or vocab.json and merges.txt; without it no sentence can be read yet"
    parser.add_argument("--vocabulary", metavar="DIR", help=words)
    parser.add_argument("--heads", type=int, help="attention heads of the vision tower; one per 64 unless given")
    parser.add_argument("--text-heads", type=int, help="attention heads of the text tower; one per 64 unless given")


def run_convert(args: Namespace, _: ArgumentParser) -> int:
    """Convert, and say what was made."""
    chosen = args[args.subcommand]
    {"r2-tuning": _r2_tuning, "internvideo2": _internvideo2, "clip": _clip}[args.subcommand](chosen)
    return 0


def _r2_tuning(args: Namespace) -> None:
    from sidelight.training.convert import convert_r2_tuning

    made = convert_r2_tuning(
        args.file,
        args.out,
        run=args.run,
        video_dim=args.video_dim,
        text_dim=args.text_dim,
        hidden=args.hidden,
        weights=_named(args.weights),
        padding=args.padding,
    )
    count = sum(p.numel() for p in made.model.parameters())
    features = made.features
    print(f"wrote {args.out}: r2-tuning, published run {args.run}, {count:,} parameters")
    print(
        f"reads {features.backbone} ({features.weights}), levels {', '.join(map(str, features.levels))}, all tokens, "
        f"{features.frames_per_clip} frame per clip of {features.clip_seconds:g} s"
    )


def _named(weights: str | None) -> str | None:
    """What a feature spec calls the weights: of a folder, what the backbone at hand says."""
    if weights is None or not Path(weights).is_dir():
        return weights
    from sidelight.backbones import load_backbone

    return load_backbone("clip", weights=weights, levels=1, pooling="tokens").spec.weights


def _positive(args: Namespace, *names: str) -> dict[str, Any]:
    """Options that are numbers of something."""
    found = {name: args[name] for name in names}
    for name, value in found.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
    return found


def _internvideo2(args: Namespace) -> None:
    from sidelight.backbones.internvideo2.model import convert_internvideo2, described

    heads = _positive(args, "heads", "pool_heads", "text_heads")
    convert_internvideo2(args.file, args.out, vocabulary=args.vocabulary, activation=args.activation, **heads)
    print(f"wrote {args.out}: InternVideo2, {described(args.out)}")
    print(f"extract with --backbone internvideo2 --weights {args.out}")


def _clip(args: Namespace) -> None:
    from sidelight.backbones.clip.model import convert_clip, described

    heads = _positive(args, "heads", "text_heads")
    if (heads["heads"] is None) != (heads["text_heads"] is None):
        raise ValueError("give both --heads and --text-heads, or neither")
    both = None if heads["heads"] is None else (heads["heads"], heads["text_heads"])
    convert_clip(args.file, args.out, heads=both, vocabulary=args.vocabulary)
    print(f"wrote {args.out}: CLIP, {described(args.out)}")
    if args.vocabulary is None:
        print(f"no sentence can be read yet: put tokenizer.json, or vocab.json and merges.txt, into {args.out}")
    print(f"extract with --backbone clip --weights {args.out}")
