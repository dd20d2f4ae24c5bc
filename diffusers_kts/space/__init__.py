"""The demo: a Gradio app on an embedded model, or on any text-to-image flow model of the Hub. ``kts space`` starts it."""
