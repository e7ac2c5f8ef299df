import argparse


class TrainArgs:
    @staticmethod
    def parse_args():
        parser = argparse.ArgumentParser()
        parser.add_argument("--config-path", required=True)
        return parser.parse_args()
