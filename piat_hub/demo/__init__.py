"""The page where anyone sees an attack; Gradio, an extra, is imported when the page is built."""
