"""Commands whose data is a list of block ranges: Dataset Management and Copy."""

#: Bytes of a source range of Copy (MSSRL), of a whole Copy (MCL), and source ranges (MSRC + 1).
MAX_COPY_RANGE: int
MAX_COPY: int
MAX_COPY_RANGES: int
