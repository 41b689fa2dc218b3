"""Everything with weights or gradients: token graph, poolers, heads and losses."""
