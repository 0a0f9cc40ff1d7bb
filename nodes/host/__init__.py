"""What the nodes need from ComfyUI: model folders, memory, downloads, users, sockets, previews."""
