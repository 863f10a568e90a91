"""`python -m knowhow`."""

from knowhow.cli import main

raise SystemExit(main())
