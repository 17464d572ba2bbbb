"""What an operator asks: is the database what the migrations make, and if not, what differs?"""
