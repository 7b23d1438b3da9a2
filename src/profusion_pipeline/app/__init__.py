"""The app: `profusion app` opens a page for photos, prompts, customising and comparing. Its widgets need Gradio."""
