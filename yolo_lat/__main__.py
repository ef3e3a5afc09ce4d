"""`python -m yolo_lat` is the `yolo-lat` command."""

from yolo_lat.cli import main

if __name__ == "__main__":
    main()
