"""Configurations of two small runs, with and without sequences."""

DIN = """
data: {kind: synthetic, rows: 4000, scale: 0.0002, days: 4, history: true}
model:
  {kind: din, dim: 8, hidden: [16, 8], attention_hidden: [8], activation: dice, batch_norm: true}
rows: {kind: adagrad, lr: 0.05}
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
