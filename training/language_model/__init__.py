"""The paper's four training stages of the language model, and fine-tuning of a released checkpoint."""
