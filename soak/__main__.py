"""python -m soak: see soak.command. Kept small: every client's process imports it."""

if __name__ == "__main__":
    from soak.command import main

    main()
