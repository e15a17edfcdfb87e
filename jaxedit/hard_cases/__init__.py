"""New hard cases for a model, as HardEdit was made: candidates, each verified by a real edit."""
