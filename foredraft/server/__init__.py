"""The HTTP server. Needs `foredraft[serve]`; `import foredraft` does not import it."""
