"""python -m hyperllava_hf.serve: `transformers serve` that knows HyperLLaVA.

transformers' server finds a model's class by name, among transformers' own. It has no plug-in
point, so this imports the package, which registers its classes, adds the name where the server
looks for it, and hands all arguments to transformers' own command.
"""

import sys
from collections.abc import Sequence

import transformers

from hyperllava_hf.auto import HyperLlavaForConditionalGeneration


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `transformers serve`.

    Args:
        arguments: As of `transformers serve`; None takes the command line's.
    """
    # 4.57's server reads the class off the module; 5.x asks the auto classes.
    name = HyperLlavaForConditionalGeneration.__name__
    setattr(transformers, name, HyperLlavaForConditionalGeneration)
    try:
        from transformers.cli.transformers import main as run_transformers
    except ImportError:  # 4.57
        from transformers.commands.transformers_cli import main as run_transformers
    given = sys.argv[1:] if arguments is None else arguments
    sys.argv = ["transformers", "serve", *given]
    run_transformers()


if __name__ == "__main__":
    main()
