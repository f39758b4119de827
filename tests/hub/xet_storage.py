"""A content-addressed store as Xet's client sees it: xorbs of chunks, and shards that list files.

Only as much of the formats is read as serving them again takes: a shard's file section (which
chunks of which xorbs make a file, and the file's SHA-256) and a xorb's chunk headers.

    shard     header (48) | files | bookend | xorbs | ...
    file      hash (32) flags (4) number of terms (4) - (8) | terms | verification? | SHA-256?
    term      xorb hash (32) flags (4) bytes (4) first chunk (4) end chunk (4)
    xorb      chunks: version (1) stored size (3) compression (1) size (3) | data
"""

import struct
from typing import Any, NamedTuple

ENTRY = 48
BOOKEND = b"\xff" * 32
WITH_VERIFICATION, WITH_SHA256 = 1 << 31, 1 << 30


class Term(NamedTuple):
    """A run of a xorb's chunks inside a file."""

    xorb: str
    num_bytes: int
    first: int
    end: int


def format_hash(raw: bytes) -> str:
    """Write a hash as Xet does: four little-endian numbers of eight bytes."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def list_chunks(xorb: bytes) -> list[tuple[int, int, int]]:
    """List (start, end, unpacked size) of every chunk of a xorb, up to its footer if it has one."""
    chunks, start = [], 0
    while start + 8 <= len(xorb) and xorb[start : start + 7] != b"XETBLOB":
        stored = int.from_bytes(xorb[start + 1 : start + 4], "little")
        size = int.from_bytes(xorb[start + 5 : start + 8], "little")
        chunks.append((start, start + 8 + stored, size))
        start += 8 + stored
    return chunks


def unpack_lz4_block(block: bytes, output: bytearray) -> None:
    """Append an LZ4 block's content; matches may reach back into what is already there."""
    position = 0

    def read_length(length: int) -> int:
        nonlocal position
        more = length == 15
        while more:
            length += block[position]
            more = block[position] == 255
            position += 1
        return length

    while position < len(block):
        token = block[position]
        position += 1
        num_literals = read_length(token >> 4)
        output += block[position : position + num_literals]
        position += num_literals
        if position >= len(block):
            return
        start = len(output) - int.from_bytes(block[position : position + 2], "little")
        position += 2
        for index in range(start, start + read_length(token & 15) + 4):
            output.append(output[index])


def unpack_lz4_frame(frame: bytes) -> bytes:
    """Unpack an LZ4 frame, without checking its checksums."""
    flags, output = frame[4], bytearray()
    position = 7 + (8 if flags & 8 else 0)
    while size := int.from_bytes(frame[position : position + 4], "little"):
        position += 4
        is_plain, size = bool(size >> 31), size & 0x7FFFFFFF
        block = frame[position : position + size]
        position += size + (4 if flags & 16 else 0)
        if is_plain:
            output += block
        else:
            unpack_lz4_block(block, output)
    return bytes(output)


def unpack_chunk(chunk: bytes) -> bytes:
    """Unpack a xorb's chunk: stored plain, as LZ4, or as LZ4 with its bytes in four groups."""
    scheme, data = chunk[4], chunk[8:]
    if scheme == 0:
        return data
    data = unpack_lz4_frame(data)
    if scheme == 1:
        return data
    unpacked, offset = bytearray(len(data)), 0
    for group in range(4):
        size = len(range(group, len(data), 4))
        unpacked[group::4] = data[offset : offset + size]
        offset += size
    return bytes(unpacked)


class XetStorage:
    """What was uploaded."""

    def __init__(self) -> None:
        self.xorbs: dict[str, bytes] = {}
        self.files: dict[str, list[Term]] = {}
        self.file_hashes: dict[str, str] = {}  # by SHA-256

    def add_xorb(self, name: str, content: bytes) -> bool:
        is_new = name not in self.xorbs
        self.xorbs[name] = content
        return is_new

    def add_shard(self, shard: bytes) -> None:
        offset = ENTRY
        while shard[offset : offset + 32] != BOOKEND:
            flags, count = struct.unpack_from("<2I", shard, offset + 32)
            name = format_hash(shard[offset : offset + 32])
            offset += ENTRY
            terms = []
            for _ in range(count):
                _, num_bytes, first, end = struct.unpack_from("<4I", shard, offset + 32)
                xorb = format_hash(shard[offset : offset + 32])
                terms.append(Term(xorb, num_bytes, first, end))
                offset += ENTRY
            self.files[name] = terms
            if flags & WITH_VERIFICATION:
                offset += ENTRY * count
            if flags & WITH_SHA256:
                self.file_hashes[format_hash(shard[offset : offset + 32])] = name
                offset += ENTRY

    def read_file(self, name: str) -> bytes:
        content = b""
        for term in self.files[name]:
            chunks = list_chunks(self.xorbs[term.xorb])[term.first : term.end]
            stored = [self.xorbs[term.xorb][start:end] for start, end, _ in chunks]
            content += b"".join(map(unpack_chunk, stored))
        return content

    def plan_reconstruction(
        self, name: str, wanted: tuple[int, int] | None, url: str
    ) -> dict[str, Any] | None:
        """Say where the bytes of a file are; None if there are none in the range."""
        terms, offset, skipped = [], 0, None
        fetches: dict[str, list[dict[str, Any]]] = {}
        for term in self.files.get(name, []):
            chunks = list_chunks(self.xorbs[term.xorb])
            first, end = None, term.first
            for index in range(term.first, term.end):
                size = chunks[index][2]
                if wanted is None or (offset < wanted[1] and offset + size > wanted[0]):
                    first, end = index if first is None else first, index + 1
                    skipped = max(0, wanted[0] - offset) if wanted and skipped is None else skipped
                offset += size
            if first is None:
                continue
            unpacked = sum(size for _, _, size in chunks[first:end])
            span = {"start": first, "end": end}
            terms.append({"hash": term.xorb, "unpacked_length": unpacked, "range": span})
            place = {"start": chunks[first][0], "end": chunks[end - 1][1] - 1}
            fetch = {"range": span, "url": f"{url}/data/{term.xorb}", "url_range": place}
            fetches.setdefault(term.xorb, []).append(fetch)
        if not terms:
            return None
        return {"offset_into_first_range": skipped or 0, "terms": terms, "fetch_info": fetches}
