"""What training, data, checkpoints, pipelines and communication do take, measured."""
