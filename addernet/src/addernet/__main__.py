from addernet.cli import main

main()
