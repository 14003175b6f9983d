"""What is known about a model from running it on data: activations, gradients, sensitivity?"""
