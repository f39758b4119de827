"""Training data: LLaVA files and Hub datasets as checked, tokenised, grouped rows."""

from .collation import ConversationCollator
from .data_source import DataSource
from .modality_sampler import ModalityLengthSampler
from .row_encoding import Row
from .row_faults import BadRow, RowFault
from .rows import Rows, open_rows
from .streamed_rows import StreamedRows

__all__ = [
    "BadRow",
    "ConversationCollator",
    "DataSource",
    "ModalityLengthSampler",
    "Row",
    "RowFault",
    "Rows",
    "StreamedRows",
    "open_rows",
]
