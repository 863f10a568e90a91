"""From what the user wrote to audited, split examples: sources, fields, store, audit, split, chat text, batches, synthesis."""
