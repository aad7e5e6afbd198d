"""Training data made from nothing: words, sentences and questions here, their sound by flite; no human recordings."""
