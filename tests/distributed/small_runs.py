"""Configurations of two small runs, with and without sequences.

Where a batch reads one row alone, BatchNorm makes its gradient zero but for rounding, and Adagrad with a
tiny eps makes steps of the whole learning rate of that: one process then differs from itself on another
CPU by 3e-6 in the loss. With the eps of these runs it differs by 3e-7.
"""

DIN = """
data: {kind: synthetic, rows: 4000, scale: 0.0002, days: 4, history: true}
model:
  {kind: din, dim: 8, hidden: [16, 8], attention_hidden: [8], activation: dice, batch_norm: true}
rows: {kind: adagrad, lr: 0.05, eps: 1.0e-4}
dense: {kind: sgd, lr: 0.05}
mini_batch_l2: 0.01
train: {batch_size: 101, epochs: 2, seed: 5}
"""
DEEPFM = """
data: {kind: synthetic, rows: 4000, scale: 0.0002, days: 4}
model: {kind: deepfm, dim: 4, hidden: [8]}
table: multiplex
ratio: 0.5
rows: {kind: adagrad, lr: 0.05}
train: {batch_size: 101, epochs: 2, seed: 5, checkpoint_every: 10}
"""
