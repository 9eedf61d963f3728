from scoreinv.cli import main

raise SystemExit(main())
