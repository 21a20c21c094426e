"""Run a checkpoint on images of your own.

    python tools/predict.py runs/bccd/best.pt photos/ extra/*.jpg --out predictions

Images are files, folders, globs, web addresses, or lists of these (.txt, one a line). A detector writes
predictions.json (COCO result format, in the data set's own category ids), predictions.csv and pictures/ with the boxes
drawn; a segmenter writes masks/ (class-index PNG) and pictures/ (overlays); a classifier writes predictions.json and
predictions.csv. images.json names the image behind each image id. Images are resized as in the checkpoint's evaluation
and everything comes back in the pixels of the file.

Video files come out as videos with what was found drawn, and a .jsonl with a line a frame; so does a camera
(camera:0), until Ctrl-C.

A checkpoint with several heads predicts with all of them from one pass of its backbone: each writes its files into a
folder of its name, and pictures/ has all in one, boxes over masks. --heads chooses some, or one, which writes as above.

With --annotations a.json the results have that data set's own image ids, so that pycocotools or a test server scores
predictions.json as it is: all images that the json names are predicted, from the one folder given.

--formats yolo voc labelme writes boxes of at least --score as label files, for annotation tools to start from.

An image that can't be read or predicted is skipped, named at the end and in skipped.txt; the exit code is then 3
(data.on_bad_image=error stops at it). Ctrl-C ends after the batch, and what was predicted is on disk.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from densekit import console
from densekit.errors import DensekitError


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt of a run folder")
    parser.add_argument(
        "inputs", nargs="+", metavar="IMAGES", help="files, folders, globs, URLs; key.path=value overrides"
    )
    parser.add_argument("--heads", nargs="+", metavar="HEAD", help="the only ones that predict (default: all)")
    parser.add_argument("--annotations", type=Path, metavar="JSON", help="COCO json of the images: results in its ids")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder to write (default: predictions)")
    parser.add_argument(
        "--score", type=console.share, help="detection: lowest score drawn (default: 0.5, or calibrated)"
    )
    parser.add_argument("--uncalibrated", action="store_true", help="scores as the head gives them, see calibrate.py")
    parser.add_argument("--formats", nargs="+", choices=console.RESULT_FORMATS, help="detection (default: coco csv)")
    parser.add_argument("--no-pictures", action="store_true", help="write numbers only")
    parser.add_argument("--batch", type=console.at_least(1), help="images per batch (default: 8)")
    parser.add_argument("--device", choices=console.DEVICES, help="default: cuda where there is one, else cpu")
    parser.add_argument("--overlap", type=console.share, help="share that windows or tiles overlap (default: 0.25)")
    parser.add_argument("--capture", action="store_true", help="on a CUDA GPU: record a prediction once and repeat it")
    parser.add_argument("--flips", action="store_true", help="average over mirrored images")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over these sizes")
    parser.add_argument("--tiles", type=int, help="detection: side of tiles in pixels, for large images, small objects")
    window = parser.add_argument_group("segmentation")
    window.add_argument("--window", type=int, help="side of a sliding window in pixels: bounded memory on large images")
    window.add_argument("--probabilities", action="store_true", help="write class probabilities (.npy, float16) too")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    from densekit import inputs
    from densekit.config import is_set
    from densekit.data.images.video import videos_among
    from densekit.engine import distributed
    from densekit.engine.guard import Stop
    from densekit.infer.in_vain import refuse_in_vain
    from densekit.infer.joint_writer import writer_of
    from densekit.infer.video import predict_videos
    from densekit.predictor import Predictor

    world = distributed.join(args.device)
    if world.size > 1:
        raise DensekitError("predict.py is one process: leave torchrun out, or start one a share of the images")
    files, overrides = console.split_overrides(args.inputs)
    videos = videos_among(files)
    predictor = Predictor(
        args.checkpoint,
        overrides,
        heads=args.heads,
        device=str(world.device),
        batch_size=args.batch or 8,
        window=args.window,
        tiles=args.tiles,
        overlap=0.25 if args.overlap is None else args.overlap,
        flips=args.flips,
        scales=args.scales,
        calibrated=not args.uncalibrated,
        capture=args.capture,
    )
    model, config = predictor.model, predictor.config
    refuse_in_vain(args, model, videos=bool(videos))
    if videos:
        how = {"score": args.score, "pictures": not args.no_pictures}
        with Stop(world) as stop:
            for line in predict_videos(predictor, videos, args.out, **how, stopping=stop.here):
                console.say(line)
        return console.INTERRUPTED if stop.here() else 0
    if args.annotations is None:
        images, left_out = inputs.image_files(config, model, files)
    else:
        images, left_out = inputs.annotated_files(config, model, files, args.annotations)
        model.classes = images.classes  # the same unless names were matched: then in the ids of the json
    console.say("\n".join([*predictor.notes, *left_out]) or None)
    how = {"score": args.score, "pictures": not args.no_pictures, "probabilities": args.probabilities}
    writer = writer_of(model, args.out, formats=args.formats or ("coco", "csv"), **how)
    # What the config says of bad images is meant for training; here only a word on the command line stops at one.
    on_bad_image = config.data.on_bad_image if is_set("data.on_bad_image", overrides) else "skip"
    size = 1 if args.window else args.batch or 8
    batches = inputs.image_batches(config, images, world, batch_size=size, on_bad_image=on_bad_image)
    with writer, Stop(world) as stop:
        predictor.write(console.track(batches, "predicting", len(batches)), images, writer, stop.here)
    console.say(writer.summary())
    console.say(writer.files.skipped_summary(len(images)))
    if stop.here():
        console.say(f"stopped: {writer.files.count} of {len(images)} images are done")
        return console.INTERRUPTED
    return console.SKIPPED if writer.files.skipped else 0


if __name__ == "__main__":
    console.run(main)
